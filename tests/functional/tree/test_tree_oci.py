"""`_oci` as clients use it: what is shown, what a push does, and what is refused; in-process and on a real mount."""

from __future__ import annotations

import errno
import json
import os

import pytest
from harness.images import OCI_IMAGE, OCI_INDEX, describe, digest, encode, oci_image, oci_index
from harness.shown import InProcess, Shown, opened

from layerfs.view.caller import set_calling_thread

CONFIG, LAYER, OTHER_LAYER = b'{"architecture":"amd64","os":"linux"}', b"a layer", b"another layer"
IMAGE = encode(oci_image(CONFIG, [LAYER]))
OTHER_IMAGE = encode(oci_image(CONFIG, [LAYER, OTHER_LAYER]))

REF_NAME = "org.opencontainers.image.ref.name"


def entry(content: bytes, tag: str | None = None, media_type: str = OCI_IMAGE) -> dict[str, object]:
    """How an index lists a manifest."""
    named = {"annotations": {REF_NAME: tag}} if tag is not None else {}
    return {"mediaType": media_type, "digest": digest(content), "size": len(content)} | named


def index(*entries: dict[str, object]) -> bytes:
    """An `index.json`."""
    return json.dumps({"schemaVersion": 2, "manifests": list(entries)}).encode()


class LayoutOf:
    """The layout of a repository, and the ways in which clients write to it."""

    def __init__(self, shown: Shown) -> None:
        self.shown = shown
        self.path = f"{shown.repository}/_oci"

    def blob(self, content: bytes) -> str:
        return f"{self.path}/blobs/{digest(content).replace(':', '/')}"

    @property
    def index(self) -> str:
        return f"{self.path}/index.json"

    async def tags(self) -> dict[str, str]:
        """What the index says that each tag means."""
        listed = json.loads(await self.shown.read(self.index))["manifests"]
        return {entry["annotations"][REF_NAME]: entry["digest"] for entry in listed}

    async def put_by_rename(self, content: bytes, name: str = "oci-put-blob1") -> None:
        """As containers/image stores layers and configs."""
        await self.shown.write(f"{self.path}/{name}", content)
        await self.shown.rename(f"{self.path}/{name}", self.blob(content))

    async def put_in_place(self, content: bytes) -> None:
        """As containers/image stores manifests."""
        await self.shown.write(self.blob(content), content, os.O_CREAT | os.O_TRUNC)

    async def write_index(self, content: bytes) -> None:
        """In place, without reading it."""
        await self.shown.write(self.index, content, os.O_CREAT | os.O_TRUNC)

    async def push(self, image: bytes, layers: list[bytes], tag: str) -> None:
        """All of an image, then an index that has it alone."""
        for number, content in enumerate([CONFIG, *layers]):
            if not await self.shown.exists(self.blob(content)):
                await self.put_by_rename(content, f"blob-{number}")
        await self.put_in_place(image)
        await self.write_index(index(entry(image, tag)))


@pytest.fixture
def layout(shown: Shown) -> LayoutOf:
    """The layout of an empty repository."""
    return LayoutOf(shown)


async def manifests_and_tags(shown: Shown) -> tuple[list[str], list[str]]:
    """What the repository has."""
    return await shown.list(f"{shown.repository}/_manifests"), await shown.list(f"{shown.repository}/_tags")


async def test_an_empty_repository(layout: LayoutOf, shown: Shown) -> None:
    """Is a valid layout without images."""
    assert await shown.list(layout.path) == ["blobs", "index.json", "oci-layout"]
    assert json.loads(await shown.read(f"{layout.path}/oci-layout")) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads(await shown.read(layout.index))["manifests"] == []
    assert await shown.list(f"{layout.path}/blobs") == ["sha256"]
    assert await shown.list(f"{layout.path}/blobs/sha256") == []


async def test_a_push(layout: LayoutOf, shown: Shown) -> None:
    """Layers are there at once, the manifest and its tag when the index is closed; nothing else is left."""
    await layout.put_by_rename(CONFIG)
    await layout.put_by_rename(LAYER)
    await shown.assert_is_layer(LAYER)
    await layout.put_in_place(IMAGE)
    assert await shown.read(layout.blob(IMAGE)) == IMAGE
    assert await manifests_and_tags(shown) == ([], [])
    await layout.write_index(index(entry(IMAGE, "v1")))
    assert await manifests_and_tags(shown) == ([digest(IMAGE)], ["v1"])
    assert await shown.read(f"{shown.repository}/_manifests/{digest(IMAGE)}") == IMAGE
    assert await layout.tags() == {"v1": digest(IMAGE)}
    assert await shown.list(shown.uploads) == []
    assert sorted(await shown.list(shown.layers)) == sorted([digest(CONFIG), digest(LAYER)])
    assert (await shown.stat(layout.index)).size == len(await shown.read(layout.index))


async def test_the_manifest_before_its_blobs(layout: LayoutOf, shown: Shown) -> None:
    """The order does not matter, as long as all is there when the index names it."""
    await layout.put_in_place(IMAGE)
    with shown.refused(errno.ENOLINK):
        await layout.write_index(index(entry(IMAGE, "v1")))
    assert await manifests_and_tags(shown) == ([], [])
    assert str(digest(LAYER)) in await shown.attribute(layout.index, "user.layerfs.error")
    await layout.put_by_rename(CONFIG)
    await layout.put_by_rename(LAYER)
    await layout.write_index(index(entry(IMAGE, "v1")))
    assert await manifests_and_tags(shown) == ([digest(IMAGE)], ["v1"])
    assert "user.layerfs.error" not in await shown.attributes(layout.index)


async def test_an_index_of_platforms(layout: LayoutOf, shown: Shown) -> None:
    """Manifests that only an index refers to become manifests with it, whatever came first."""
    platforms = encode(oci_index([IMAGE, OTHER_IMAGE]))
    for content in (platforms, OTHER_IMAGE, IMAGE):
        await layout.put_by_rename(content, "x.tmp")
    for content in (CONFIG, LAYER, OTHER_LAYER):
        await layout.put_by_rename(content)
    await layout.write_index(index(entry(platforms, "multi", OCI_INDEX)))
    names = sorted(map(digest, (platforms, IMAGE, OTHER_IMAGE)))
    assert await manifests_and_tags(shown) == (names, ["multi"])
    assert await shown.list(shown.uploads) == []


async def test_a_layer_that_looks_like_a_manifest(layout: LayoutOf, shown: Shown) -> None:
    """What a manifest has among its layers is one, however it looks."""
    await layout.put_by_rename(CONFIG)
    await layout.put_by_rename(LAYER)
    await layout.put_by_rename(IMAGE)
    wrapper = encode(oci_image(CONFIG, [IMAGE]))
    await layout.put_in_place(wrapper)
    await layout.write_index(index(entry(wrapper, "wrapped")))
    await shown.assert_is_layer(IMAGE)
    assert await manifests_and_tags(shown) == ([digest(wrapper)], ["wrapped"])


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (b"{", errno.EINVAL),
        (b"[]", errno.EINVAL),
        (b"{}", errno.EINVAL),
        (index(entry(IMAGE, "not a tag")), errno.EINVAL),
        (index(entry(IMAGE, "docker.io/library/x:1")), errno.EINVAL),
        (index({"mediaType": OCI_IMAGE, "digest": "sha256:zz", "size": 1}), errno.EINVAL),
        (index(entry(b"never pushed", "v2")), errno.ENOLINK),
        (index(entry(b"never pushed")), errno.ENOLINK),
        (index(entry(OTHER_IMAGE, "v2"), entry(b"never pushed", "v3")), errno.ENOLINK),
    ],
)
async def test_a_refused_index(layout: LayoutOf, shown: Shown, content: bytes, number: int) -> None:
    """Changes nothing, not even what of it is right; written in place or renamed to its place."""
    await layout.push(IMAGE, [LAYER], "v1")
    await layout.put_by_rename(OTHER_LAYER)
    await layout.put_in_place(OTHER_IMAGE)
    before = await manifests_and_tags(shown), await shown.read(layout.index)
    with shown.refused(number):
        await layout.write_index(content)
    await shown.write(f"{layout.path}/index.tmp", content)
    with shown.refused(number):
        await shown.rename(f"{layout.path}/index.tmp", layout.index)
    assert (await manifests_and_tags(shown), await shown.read(layout.index)) == before
    assert await shown.read(f"{layout.path}/index.tmp") == content
    await shown.remove(f"{layout.path}/index.tmp")


async def test_an_index_that_is_opened_and_not_written(layout: LayoutOf, shown: Shown) -> None:
    """Is what it was, also if it was emptied."""
    await layout.push(IMAGE, [LAYER], "v1")
    for flags in (os.O_WRONLY, os.O_WRONLY | os.O_TRUNC, os.O_RDWR):
        async with opened(await shown.open(layout.index, flags)):
            pass
    assert await layout.tags() == {"v1": digest(IMAGE)}


async def test_an_index_written_over_and_cut(layout: LayoutOf, shown: Shown) -> None:
    """As BuildKit writes it: over the old content from the beginning, then cut to its length."""
    await layout.push(IMAGE, [LAYER], "v1")
    await layout.push(OTHER_IMAGE, [LAYER, OTHER_LAYER], "a-rather-long-name-so-that-the-new-index-is-shorter")
    written = index(entry(IMAGE, "v2"))
    async with opened(await shown.open(layout.index, os.O_RDWR)) as file:
        assert len(await file.read()) > len(written)
        await file.write(written)
        await file.truncate(len(written))
    assert (await layout.tags())["v2"] == digest(IMAGE)


async def test_a_writer_that_leaves_out_a_tag(layout: LayoutOf, shown: Shown) -> None:
    """Removes none on a mount that does not allow it."""
    await layout.push(IMAGE, [LAYER], "v1")
    await layout.push(OTHER_IMAGE, [LAYER, OTHER_LAYER], "v2")
    async with opened(await shown.open(layout.index, os.O_RDWR)) as file:
        await file.read()
        await file.truncate(0)
        await file.write(index(entry(IMAGE, "v3")))
    assert await layout.tags() == {"v1": digest(IMAGE), "v2": digest(OTHER_IMAGE), "v3": digest(IMAGE)}


async def test_temporary_files(layout: LayoutOf, shown: Shown) -> None:
    """Are there for whoever knows their names; directories of clients list them, the layout does not."""
    await shown.make_directory(f"{layout.path}/ingest")
    await shown.make_directory(f"{layout.path}/ingest/1")
    for name in ("x.tmp", "blobs/sha256/x.tmp", "ingest/1/data"):
        await shown.write(f"{layout.path}/{name}", b"content")
        assert await shown.read(f"{layout.path}/{name}") == b"content"
    assert await shown.list(layout.path) == ["blobs", "index.json", "oci-layout"]
    assert await shown.list(f"{layout.path}/blobs/sha256") == []
    assert await shown.list(f"{layout.path}/ingest/1") == ["data"]
    assert len(await shown.list(shown.uploads)) == 3
    with shown.refused(errno.ENOTEMPTY):
        await shown.remove_directory(f"{layout.path}/ingest/1")
    await shown.rename(f"{layout.path}/ingest/1/data", f"{layout.path}/y")
    await shown.rename(f"{layout.path}/x.tmp", f"{layout.path}/y")
    await shown.remove_directory(f"{layout.path}/ingest/1")
    await shown.remove_directory(f"{layout.path}/ingest")
    await shown.remove(f"{layout.path}/y")
    await shown.remove(f"{layout.path}/blobs/sha256/x.tmp")
    assert await shown.list(shown.uploads) == []
    assert not await shown.exists(f"{layout.path}/ingest")


async def test_bytes_that_are_not_what_the_name_says(layout: LayoutOf, shown: Shown) -> None:
    """Never appear, whether they look like a layer or like a manifest, and however they come."""
    for wrong, right in ((b"wrong", LAYER), (OTHER_IMAGE, IMAGE)):
        await shown.write(f"{layout.path}/x.tmp", wrong)
        with shown.refused(errno.EBADMSG):
            await shown.rename(f"{layout.path}/x.tmp", layout.blob(right))
        assert await shown.read(f"{layout.path}/x.tmp") == wrong
        await shown.remove(f"{layout.path}/x.tmp")
        with shown.refused(errno.EBADMSG):
            await shown.write(layout.blob(right), wrong)
        assert not await shown.exists(layout.blob(right))
    assert await shown.list(f"{layout.path}/blobs/sha256") == []


async def test_writing_over_what_is_there(layout: LayoutOf, shown: Shown) -> None:
    """Succeeds with the same bytes and changes nothing; with others it fails, and changes nothing."""
    await layout.push(IMAGE, [LAYER], "v1")
    before = await manifests_and_tags(shown), await shown.list(shown.layers)
    for content in (IMAGE, LAYER):
        await layout.put_in_place(content)
        await layout.put_by_rename(content)
        with shown.refused(errno.EBADMSG):
            await shown.write(layout.blob(content), b"others", os.O_TRUNC)
        assert await shown.read(layout.blob(content)) == content
    assert (await manifests_and_tags(shown), await shown.list(shown.layers)) == before
    assert await shown.list(shown.uploads) == []
    with shown.refused(errno.EPERM):
        await shown.open(shown.layer(digest(LAYER)), os.O_WRONLY)


async def test_removing_blobs(layout: LayoutOf, shown: Shown) -> None:
    """Is refused; the two files of the layout cannot be removed either."""
    await layout.push(IMAGE, [LAYER], "v1")
    for path in (layout.blob(LAYER), layout.blob(IMAGE), layout.index, f"{layout.path}/oci-layout"):
        with shown.refused(errno.EPERM):
            await shown.remove(path)


async def test_removing_directories_of_the_layout(layout: LayoutOf, shown: Shown) -> None:
    """Is refused, though they are empty."""
    for name in ("blobs", "blobs/sha256", "tags"):
        with shown.refused(errno.EPERM):
            await shown.remove_directory(f"{layout.path}/{name}")


async def test_the_layout_of_a_tag(layout: LayoutOf, shown: Shown) -> None:
    """Has that image alone, with all that it needs and nothing else, and cannot be changed."""
    await layout.push(IMAGE, [LAYER], "v1")
    await layout.push(OTHER_IMAGE, [LAYER, OTHER_LAYER], "v2")
    assert await shown.list(f"{layout.path}/tags") == ["v1", "v2"]
    path = f"{layout.path}/tags/v1"
    assert await shown.list(path) == ["blobs", "index.json", "oci-layout"]
    assert [one["digest"] for one in json.loads(await shown.read(f"{path}/index.json"))["manifests"]] == [digest(IMAGE)]
    needed = sorted(digest(content).removeprefix("sha256:") for content in (IMAGE, CONFIG, LAYER))
    assert await shown.list(f"{path}/blobs/sha256") == needed
    assert await shown.read(f"{path}/blobs/{digest(LAYER).replace(':', '/')}") == LAYER
    for place in ("x", "blobs/x", "blobs/sha256/x", f"blobs/sha256/{digest(b'new').removeprefix('sha256:')}"):
        with shown.refused(errno.EROFS):
            await shown.write(f"{path}/{place}", b"new")
    for existing in ("index.json", "oci-layout"):
        with shown.refused(errno.EROFS):
            await shown.write(f"{path}/{existing}", b"{}", os.O_TRUNC)
    for existing in ("", "/index.json", "/blobs", f"/blobs/{digest(LAYER).replace(':', '/')}"):
        with shown.refused(errno.EROFS):
            await shown.change_mode(f"{path}{existing}", 0o600)
    assert not await shown.exists(f"{layout.path}/tags/v3")


async def test_what_a_process_has_read(layout: LayoutOf, shown: Shown) -> None:
    """Decides what it changes: tags that others have put or moved since are as they left them."""
    await layout.push(IMAGE, [LAYER], "v1")
    await layout.put_by_rename(OTHER_LAYER)
    await layout.put_in_place(OTHER_IMAGE)
    if isinstance(shown, InProcess):
        set_calling_thread(os.getpid())
    stale = json.loads(await shown.read(layout.index))["manifests"]
    set_calling_thread(0)
    tags = f"{shown.repository}/_tags"
    await shown.write(f"{tags}/v2", IMAGE)  # other ways to push, which the reader knows nothing of
    await shown.write(f"{tags}/new", OTHER_IMAGE)
    await shown.rename(f"{tags}/new", f"{tags}/v1")
    if isinstance(shown, InProcess):
        set_calling_thread(os.getpid())
    await layout.write_index(index(*stale, entry(IMAGE, "v3")))
    set_calling_thread(0)
    assert await layout.tags() == {"v1": digest(OTHER_IMAGE), "v2": digest(IMAGE), "v3": digest(IMAGE)}


def test_images_of_this_module() -> None:
    """The descriptors that other tests make are those that this one writes."""
    assert describe(IMAGE, OCI_IMAGE) == entry(IMAGE)
