"""How many requests things cost on S3, and that they are made side by side: counted by a proxy."""

from __future__ import annotations

import hashlib
import json
import random
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
import trio
from harness.object_stores import S3Server, at_once
from harness.s3_proxy import S3Proxy
from harness.swift import Swift

from layerfs.digest import Digest
from layerfs.driver.s3 import S3Driver
from layerfs.errors import LayerfsError, PathNotFound, TagUnknown
from layerfs.manifest import OCI_IMAGE
from layerfs.reference import Reference
from layerfs.registry import Registry
from layerfs.registry.maintenance import check, purge_uploads
from layerfs.registry.paths import BlobData, LayerLink, ManifestRevisionLink, TagCurrentLink, TagIndexLink
from layerfs.warming import find_wanted

MEBIBYTE = 1 << 20
DATA = "/docker/registry/v2/repositories/a/_uploads/{}/data"
REPOSITORY = "/docker/registry/v2/repositories/a"

Drivers = Callable[..., S3Driver]
Payload = Callable[[int], bytes]


def digest_of(content: bytes) -> Digest:
    return Digest.parse(f"sha256:{hashlib.sha256(content).hexdigest()}")


def listed_by(proxy: S3Proxy, prefix: str) -> list[str]:
    """The directories that objects were listed of, by paths, once for each page."""
    asked = [parse_qs(urlsplit(seen.target).query) for seen in proxy.seen if seen.operation == "ListObjectsV2"]
    return [query["prefix"][0].removeprefix(prefix) for query in asked]


async def put_all(driver: S3Driver, paths: list[str], content: bytes = b"") -> None:
    """Puts many files, no more at a time than keep the gateway busy."""
    limiter = trio.CapacityLimiter(64)

    async def put(path: str) -> None:
        async with limiter:
            await driver.put_content(path, content)

    async with trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(put, path)


async def tag(driver: S3Driver, tags: list[str], digest: Digest, moved: Digest | None = None) -> None:
    """Tags as a registry stores them; those that were `moved` here have meant something else before."""
    paths = [f"{REPOSITORY}/_manifests/tags/{each}" for each in tags]
    await put_all(driver, [f"{path}/current/link" for path in paths], str(digest).encode())
    for meant in [digest, *([moved] if moved is not None else [])]:
        await put_all(driver, [f"{path}/index/sha256/{meant.hex}/link" for path in paths], str(meant).encode())


# --- one file --------------------------------------------------------------------------------------------------------


async def test_small_things_cost_one_request(proxied: S3Driver, proxy: S3Proxy, stored) -> None:
    """Putting, getting, looking, listing; reading costs one for each range, and opening one."""
    await proxied.put_content("/a/link", b"content")
    assert proxy.counts == {"PutObject": 1}
    proxy.forget()
    await proxied.get_content("/a/link", limit=100)
    assert proxy.counts == {"GetObject": 1}
    proxy.forget()
    await proxied.stat("/a/link")
    assert proxy.counts == {"HeadObject": 1}
    proxy.forget()
    await proxied.list("/a")
    assert proxy.counts == {"ListObjectsV2": 1}
    proxy.forget()
    reader = await proxied.open("/a/link")
    for offset in range(7):
        assert await reader.read(offset, 3) == b"content"[offset : offset + 3]
    assert await reader.read(7, 1) == b""
    assert proxy.counts == {"HeadObject": 1, "GetObject": 7}
    proxy.forget()
    await proxied.delete("/a/link")
    assert proxy.counts == {"ListObjectsV2": 1, "DeleteObject": 1}


async def test_whether_there_is_a_directory_costs_one_request(proxied: S3Driver, proxy: S3Proxy) -> None:
    """There need be no file of its name to be known."""
    await proxied.put_content("/a/link", b"content")
    proxy.forget()
    assert await proxied.is_directory("/a")
    assert not await proxied.is_directory("/b")
    assert proxy.counts == {"ListObjectsV2": 2}


async def test_the_size_of_an_upload_that_was_written_here_costs_one_request(
    drivers: Drivers, proxied: S3Driver, proxy: S3Proxy, payload: Payload, server: S3Server
) -> None:
    """Its id is known; and if it is not that any more, because others went on, it is looked for."""
    writer = await proxied.writer(DATA.format("u"), append=False)
    await writer.write([payload(1000)])
    await writer.flush()
    await writer.close()
    proxy.forget()
    assert (await proxied.stat(DATA.format("u"))).size == 1000
    # Swift must be asked whether it is still open, too.
    assert proxy.counts == {"ListParts": 1} | ({"ListMultipartUploads": 1} if isinstance(server, Swift) else {})
    other = await drivers().writer(DATA.format("u"), append=True)
    await other.write([payload(10)])
    await other.flush()
    await other.close()
    assert (await proxied.stat(DATA.format("u"))).size == 1010


async def test_an_empty_file_is_not_read(proxied: S3Driver, proxy: S3Proxy) -> None:
    """There is no range in it that could be asked for."""
    await proxied.put_content("/empty", b"")
    reader = await proxied.open("/empty")
    proxy.forget()
    assert await reader.read(0, 100) == b""
    assert proxy.seen == []
    assert await proxied.get_content("/empty", limit=1) == b""


async def test_too_large_content_is_not_read(proxied: S3Driver, proxy: S3Proxy, payload: Payload) -> None:
    """Its size is known before its bytes come."""
    await proxied.put_content("/large", payload(20 * MEBIBYTE))
    proxy.forget()
    with pytest.raises(Exception, match="too large"):
        await proxied.get_content("/large", limit=100)
    assert proxy.counts == {"GetObject": 1}


async def test_the_size_of_an_upload_costs_two_requests(proxied: S3Driver, proxy: S3Proxy, stored) -> None:
    """It is the store that has it: its list of uploads, and that of the parts."""
    stored.begin(DATA.format("u"), (1, b"content"))
    assert (await proxied.stat(DATA.format("u"))).size == 7
    assert proxy.counts == {"ListMultipartUploads": 1, "ListParts": 1}


async def test_looking_at_an_upload_takes_two_ways_there_and_back(
    proxied: S3Driver, proxy: S3Proxy, stored, drivers: Drivers
) -> None:
    """What is asked of it is asked at the same time; but its parts only when it is known."""
    upload = await (await Registry.open(drivers(), create=True)).repository("a").layers.upload(file_name="layer")
    await upload.write(b"content")
    await upload.close_writer()
    layers = (await Registry.open(proxied, create=True)).repository("a").layers
    proxy.forget()
    proxy.latency = 0.1
    info = await layers.stat_upload(upload.uuid)
    assert (info.file_name, info.size) == ("layer", 7)
    assert proxy.counts == {"GetObject": 2, "ListMultipartUploads": 1, "ListParts": 1}
    assert proxy.most_at_once == 3


async def test_a_blob_is_never_looked_for_among_uploads(proxied: S3Driver, proxy: S3Proxy) -> None:
    """Also when it is missing."""
    with pytest.raises(PathNotFound):
        await proxied.stat("/docker/registry/v2/blobs/sha256/ab/abcd/data")
    with pytest.raises(PathNotFound):
        await proxied.open("/docker/registry/v2/blobs/sha256/ab/abcd/data")
    assert proxy.counts == {"HeadObject": 2, "ListObjectsV2": 2}


# --- an upload -------------------------------------------------------------------------------------------------------


async def test_finishing_an_upload(
    proxied: S3Driver, proxy: S3Proxy, stored, payload: Payload, server: S3Server
) -> None:
    """At most eight requests, and none of its bytes, which the store copies itself.

    Swift has to be asked twice whether the upload is still open, and refuses the first copy.
    """
    more = 4 if isinstance(server, Swift) else 0
    content = payload(64 * MEBIBYTE)
    layers = (await Registry.open(proxied, create=True)).repository("a").layers
    upload = await layers.upload(file_name="layer.tar")
    assert len(proxy.seen) <= 8
    proxy.forget()
    for start in range(0, len(content), MEBIBYTE):
        await upload.write(content[start : start + MEBIBYTE])
    await upload.close_writer()
    # Before each part it is asked whether somebody else has stored one of its number.
    assert proxy.counts["UploadPart"] == proxy.counts["ListParts"] == 4
    assert len(proxy.seen) - proxy.counts["ListMultipartUploads"] <= 10
    assert proxy.bytes_through < len(content) * 1.01
    proxy.forget()
    await upload.finish(digest_of(content))
    assert len(proxy.seen) <= 8 + more, proxy.counts
    assert proxy.bytes_through < 100_000
    hexadecimal = digest_of(content).hex
    blob = f"/docker/registry/v2/blobs/sha256/{hexadecimal[:2]}/{hexadecimal}/data"
    assert stored.paths() == [blob, f"{REPOSITORY}/_layers/sha256/{hexadecimal}/link"]
    assert stored.content(blob) == content
    assert stored.uploads() == []


async def test_going_on_with_an_upload_costs_five_requests(
    drivers: Drivers, proxied: S3Driver, proxy: S3Proxy, payload: Payload
) -> None:
    """Whoever has written it; states that others may have left are in the listing that says whether it is there."""
    async with await (await Registry.open(drivers(), create=True)).repository("a").layers.upload() as upload:
        await upload.write(payload(1000))
    ours = await (await Registry.open(proxied)).repository("a").layers.resume(upload.uuid)
    for _ in range(2):
        proxy.forget()
        await ours.open_writer()
        assert proxy.counts.total() <= 5, proxy.counts
        await ours.close_writer()


async def test_finishing_by_a_wrong_digest_first(proxied: S3Driver, proxy: S3Proxy, payload: Payload) -> None:
    """Nothing is read, neither then nor when the right one is given: what this process has hashed it knows."""
    content = payload(6 * MEBIBYTE)
    layers = (await Registry.open(proxied, create=True)).repository("a").layers
    upload = await layers.upload()
    await upload.write(content)
    with pytest.raises(Exception, match="does not match"):
        await upload.finish(digest_of(b"something else"))
    await upload.finish(digest_of(content))
    assert proxy.counts["GetObject"] == 0
    assert (await layers.stat(digest_of(content))).blob.size == len(content)


async def test_finishing_what_another_process_wrote_reads_it_once(
    drivers: Drivers, proxied: S3Driver, proxy: S3Proxy, payload: Payload
) -> None:
    """Nobody's word is taken for what it is."""
    content = payload(6 * MEBIBYTE)
    layers = (await Registry.open(drivers(), create=True)).repository("a").layers
    async with await layers.upload() as upload:
        await upload.write(content)
        await upload.flush()
        again = await (await Registry.open(proxied, create=True)).repository("a").layers.resume(upload.uuid)
    proxy.forget()
    await again.finish(digest_of(content))
    read = sum(seen.received for seen in proxy.seen if seen.operation == "GetObject")
    assert len(content) <= read < len(content) + 1000


# --- many ------------------------------------------------------------------------------------------------------------


async def test_more_than_a_page_of_keys(drivers: Drivers, proxied: S3Driver, proxy: S3Proxy, stored) -> None:
    """All are listed, with a request for each thousand, and deleted likewise."""
    names = [f"{number:04}" for number in range(1100)]
    await put_all(drivers(), [f"/many/{name}" for name in names] + ["/many-neighbour"])
    assert sorted(entry.name for entry in await proxied.list("/many")) == names
    assert proxy.counts == {"ListObjectsV2": 2}
    proxy.forget()
    await proxied.delete("/many")
    assert proxy.counts["DeleteObjects"] == 2
    assert len(proxy.seen) <= 8
    assert stored.paths() == ["/many-neighbour"]


@pytest.mark.soak
async def test_a_file_with_a_thousand_neighbours_of_like_names(drivers: Drivers, proxied: S3Driver, stored) -> None:
    """It alone is deleted, and so is a directory among them."""
    neighbours = [f"/a-{number:04}" for number in range(1100)]
    await put_all(drivers(), [*neighbours, "/a/b/c", "/a/d"])
    await proxied.delete("/a")
    assert stored.paths() == neighbours
    with pytest.raises(PathNotFound):
        await proxied.delete("/a")
    stored.put("/a", b"")
    await proxied.delete("/a")
    assert stored.paths() == neighbours


@pytest.mark.soak
async def test_more_than_a_page_of_uploads(driver: S3Driver, proxied: S3Driver, proxy: S3Proxy, stored) -> None:
    """Their sizes are exact. The uploads are listed once for all, and the parts of each, side by side."""
    paths = [DATA.format(f"{number:04}") for number in range(1050)]
    at_once(lambda path: stored.begin(path, (1, path[-7:].encode())), paths)
    found = await proxied.stat_many(paths)
    assert {info.size for info in found} == {7}
    assert [info.path for info in found] == paths
    assert proxy.counts["ListMultipartUploads"] <= 4
    assert len(proxy.seen) <= 1054
    assert proxy.most_at_once > 16
    await driver.delete(REPOSITORY)
    assert stored.uploads() == []


async def test_more_than_a_page_of_parts(proxied: S3Driver, proxy: S3Proxy, stored) -> None:
    """All are counted, and none twice."""
    data = DATA.format("u")
    upload_id = stored.begin(data)
    numbers = range(1, 1051)
    at_once(lambda number: stored.store_part(data, upload_id, number, b"x" * (number % 3 + 1)), numbers)
    assert (await proxied.stat(data)).size == sum(number % 3 + 1 for number in numbers)
    assert 1 <= proxy.counts["ListParts"] <= 2


@pytest.mark.soak
async def test_listing_a_thousand_layers(drivers: Drivers, proxied: S3Driver, proxy: S3Proxy, prefix: str) -> None:
    """A handful of listings; the blobs are not asked one by one."""
    numbers = random.Random(1)
    digests = [digest_of(numbers.randbytes(8)) for _ in range(1000)]
    driver = drivers()
    limiter = trio.CapacityLimiter(64)

    async def put(path: str, content: bytes) -> None:
        async with limiter:
            await driver.put_content(path, content)

    async with trio.open_nursery() as nursery:
        for digest in digests:
            link = f"{REPOSITORY}/_layers/sha256/{digest.hex}/link"
            blob = f"/docker/registry/v2/blobs/sha256/{digest.hex[:2]}/{digest.hex}/data"
            nursery.start_soon(put, link, str(digest).encode())
            nursery.start_soon(put, blob, b"content")
    layers = await (await Registry.open(proxied, create=True)).repository("a").layers.list()
    assert {layer.digest for layer in layers} == set(digests)
    listed = listed_by(proxy, prefix)
    blobs = "/docker/registry/v2/blobs/sha256/"
    one = min(digest.hex for digest in digests)[:2]
    assert list(dict.fromkeys(listed)) == ["/docker/registry/v2/", f"{REPOSITORY}/_layers/", f"{blobs}{one}/", blobs]
    # Ceph asks each shard of a bucket's index for little more than its share of a page, and ends the page where one of
    # them had more, if it is half full: two pages for a thousand keys, or one, as their names fall.
    assert max(Counter(listed).values()) <= 2
    assert len(proxy.seen) <= 7


async def test_a_manifest_with_many_tags_is_removed_with_few_requests(
    driver: S3Driver, proxied: S3Driver, proxy: S3Proxy, stored
) -> None:
    """All tags are looked at, twice those that go; these go together, each current before its index."""
    one, other = digest_of(b"one"), digest_of(b"other")
    await driver.put_content(f"{REPOSITORY}/_manifests/revisions/sha256/{one.hex}/link", str(one).encode())
    await tag(driver, [f"one{number}" for number in range(600)], one, moved=other)
    await tag(driver, ["other", "one"], other, moved=one)
    await Registry(proxied).repository("a").manifests.delete(one)
    left = [path.removeprefix(f"{REPOSITORY}/_manifests/tags/") for path in stored.paths()]
    of_others = [f"{name}/index/sha256/{each.hex}/link" for name in ("one", "other") for each in (one, other)]
    assert sorted(left) == sorted(["one/current/link", "other/current/link", *of_others])
    # 602 tags by one listing. Of 500 and 100 the currents, and what is left, listed by pages: 1,306 files, then 206.
    # At the end the revision.
    assert proxy.counts == {
        "GetObject": 602 + 600,
        "ListObjectsV2": 1 + 2 + 1 + 1,
        "DeleteObjects": 4,
        "DeleteObject": 1,
    }


async def test_tags_of_a_manifest_go_current_first(driver: S3Driver, proxied: S3Driver, proxy: S3Proxy, stored) -> None:
    """Whenever it ends, no tag is left that has a current and no index."""
    one = digest_of(b"one")
    names = [f"one{number}" for number in range(20)]
    await tag(driver, names, one)
    proxy.fail("refuse", "DeleteObjects", after=1, times=100, status=403, code="AccessDenied")
    with pytest.raises(LayerfsError):
        await Registry(proxied).repository("a").manifests.delete(one)
    assert sorted(path.split("/")[-4] for path in stored.paths()) == ["index"] * 20


# --- a registry as a whole --------------------------------------------------------------------------------------------


def image_of(config: bytes, layers: list[bytes]) -> bytes:
    """The manifest of an image."""
    parts = [{"digest": str(digest_of(content)), "size": len(content)} for content in (config, *layers)]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_IMAGE, "config": parts[0], "layers": parts[1:]}).encode()


async def plant_repositories(driver: S3Driver, names: list[str], tags: int) -> Digest:
    """Repositories with one manifest, which has so many tags in each; of the two layers one is its config."""
    layers = [b"{}", b"layer"]
    content = image_of(layers[0], layers[1:])
    digests = [digest_of(each) for each in (*layers, content)]
    for digest, stored_content in zip(digests, (*layers, content), strict=True):
        await driver.put_content(BlobData(digest).path, stored_content)
    manifest = digests[-1]
    links: dict[Digest, list[str]] = {digest: [] for digest in digests}
    for name in names:
        for digest in digests[:-1]:
            links[digest].append(LayerLink(name, digest).path)
        links[manifest].append(ManifestRevisionLink(name, manifest).path)
        for number in range(tags):
            links[manifest] += [
                TagCurrentLink(name, f"v{number}").path,
                TagIndexLink(name, f"v{number}", manifest).path,
            ]
    for digest, paths in links.items():
        await put_all(driver, paths, str(digest).encode())
    return manifest


async def test_the_catalog_costs_a_request_for_each_name(driver: S3Driver, proxied: S3Driver, proxy: S3Proxy) -> None:
    """Many side by side, though they come in order; none for what is in a repository."""
    names = sorted(
        f"team{team}/service{service}/image{image}" for team in range(3) for service in range(4) for image in (1, 2)
    )
    await put_all(driver, [f"/docker/registry/v2/repositories/{name}/_layers/sha256/link" for name in names])
    proxy.latency = 0.03
    assert [name async for name in Registry(proxied).catalog()] == names
    assert proxy.counts == {"ListObjectsV2": 1 + 3 + 12 + 24}
    assert proxy.most_at_once >= 8
    assert not [seen for seen in proxy.seen if "_layers" in seen.target]
    proxy.forget()
    assert [name async for name in Registry(proxied).catalog(last=names[-2])] == names[-1:]
    assert proxy.counts == {"ListObjectsV2": 5}


async def test_checking_costs_no_more_listings_for_more_tags(
    driver: S3Driver, drivers: Drivers, proxy: S3Proxy
) -> None:
    """A repository is listed by pages; each link is a request, and each blob. Several are looked at side by side."""
    counts = []
    for tags in (1, 30):
        await plant_repositories(driver, ["a", "b", "c/d"], tags)
        proxy.forget()
        proxy.latency = 0.03
        assert [fault async for fault in check(Registry(drivers(endpoint_url=proxy.url)), settle=0.0)] == []
        proxy.latency = 0.0
        counts.append(proxy.counts)
        assert proxy.most_at_once >= 3
    assert counts[0]["ListObjectsV2"] == counts[1]["ListObjectsV2"]
    # Of each repository: two layers, the revision, the manifest, and two links of each tag.
    assert [each["GetObject"] for each in counts] == [3 * (4 + 2), 3 * (4 + 60)]


async def test_old_uploads_are_found_with_few_requests(driver: S3Driver, proxied: S3Driver, proxy: S3Proxy) -> None:
    """Four for each, many side by side: when it began, one listing of it, and the data, whose parts are listed."""
    count = 20
    for number in range(count):
        path = f"{REPOSITORY}/_uploads/{uuid.UUID(int=number)}"
        await driver.put_content(f"{path}/startedat", b"2020-01-01T00:00:00Z")
        await driver.put_content(f"{path}/hashstates/sha256/0", b"state")
        writer = await driver.writer(f"{path}/data", append=False)
        await writer.write([b"data"])
        await writer.flush()
        await writer.close()
    proxy.forget()
    proxy.latency = 0.03
    later = datetime.now(UTC) + timedelta(days=30)
    found = [upload async for upload in purge_uploads(Registry(proxied), dry_run=True, now=later)]
    assert [(upload.upload, upload.size) for upload in found] == [(str(uuid.UUID(int=n)), 4) for n in range(count)]
    assert proxy.counts == {
        "GetObject": count,
        "ListObjectsV2": count + 4,
        "ListMultipartUploads": count + 1,
        "ListParts": count,
    }
    assert proxy.most_at_once >= 16


async def test_what_images_need_is_looked_for_once(driver: S3Driver, proxied: S3Driver, proxy: S3Proxy) -> None:
    """A tag costs a request, a manifest four and a layer two, whoever has it; side by side."""
    count = 12
    config = b"{}"
    contents = [image_of(config, [f"layer {number}".encode()]) for number in range(count)]
    for content in [config, *contents, *(f"layer {number}".encode() for number in range(count))]:
        await driver.put_content(BlobData(digest_of(content)).path, content)
        for link in (LayerLink, ManifestRevisionLink):
            await driver.put_content(link("a", digest_of(content)).path, str(digest_of(content)).encode())
    for number, content in enumerate(contents):
        for tag in (f"v{number}", f"also-v{number}"):
            await driver.put_content(TagCurrentLink("a", tag).path, str(digest_of(content)).encode())
    proxy.forget()
    proxy.latency = 0.03
    wanted = await find_wanted(Registry(proxied), [Reference.parse("a")])
    digests = [str(digest_of(content)) for content in contents]
    assert sorted(str(each.digest) for each in wanted if str(each.digest) in digests) == sorted(digests)
    assert len(wanted) == 2 * count + 1
    assert not [each for each in wanted if each.blob is None]
    counts = proxy.counts
    assert counts["ListObjectsV2"] == 2
    # The config, which all of them have, may be asked for by each before the first answer is there.
    assert 6 * count < counts["GetObject"] <= 7 * count
    assert proxy.most_at_once >= count


async def test_deleting_a_layer_does_not_list_the_others(driver: S3Driver, proxied: S3Driver, proxy: S3Proxy) -> None:
    """Only links by other names are looked for."""
    digests = [digest_of(str(number).encode()) for number in range(30)]
    await put_all(driver, [LayerLink("a", digest).path for digest in digests])
    proxy.forget()
    await Registry(proxied).repository("a").layers.delete(digests[0])
    assert proxy.counts == {"ListObjectsV2": 2, "DeleteObject": 1}
    assert not [
        seen for seen in proxy.seen if seen.operation == "ListObjectsV2" and "_layers%2Fsha256%2F&" in seen.target
    ]


async def test_removing_a_tag_costs_three_requests(driver: S3Driver, proxied: S3Driver, proxy: S3Proxy, stored) -> None:
    """Its current goes before its index; what is left of one without a current goes too, and was no tag."""
    one, other = digest_of(b"one"), digest_of(b"other")
    await tag(driver, ["v1", "v1.1", "half"], one, moved=other)
    await driver.delete(f"{REPOSITORY}/_manifests/tags/half/current/link")
    tags = Registry(proxied).repository("a").tags
    await tags.untag("v1")
    assert [seen.operation for seen in proxy.seen] == ["ListObjectsV2", "DeleteObject", "DeleteObjects"]
    assert proxy.seen[1].target.endswith("/tags/v1/current/link")
    for name in ("half", "half"):
        with pytest.raises(TagUnknown):
            await tags.untag(name)
    assert {path.split("/")[8] for path in stored.paths()} == {"v1.1"}
