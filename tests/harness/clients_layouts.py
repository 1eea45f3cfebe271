"""OCI image layouts, put together and looked at by hand: neither layerfs nor a client has a part in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.images import DOCKER_IMAGE, DOCKER_LIST, OCI_IMAGE, OCI_INDEX
from harness.storage import Storage, digest_of

#: The annotation that makes an entry of an index a tag.
REF_NAME = "org.opencontainers.image.ref.name"

MANIFEST_TYPES = (OCI_IMAGE, OCI_INDEX, DOCKER_IMAGE, DOCKER_LIST)
INDEX_TYPES = (OCI_INDEX, DOCKER_LIST)

Descriptor = dict[str, Any]


class Tag(NamedTuple):
    """One tag of the fixture, as the registry told it."""

    repository: str
    tag: str
    digest: str
    media_type: str

    @property
    def is_oci(self) -> bool:
        """Whether clients that know nothing of Docker's formats can read it."""
        return self.media_type in (OCI_IMAGE, OCI_INDEX)

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEX_TYPES

    def __str__(self) -> str:
        return f"{self.repository}:{self.tag}"[:40]


def told_tags(fixture: Path) -> list[Tag]:
    """All tags of the fixture's `storage/`."""
    told = [json.loads(line) for line in (fixture / "tags.jsonl").read_text().splitlines()]
    return [Tag(each["repo"], each["tag"], each["digest"], each["mediaType"]) for each in told]


def blob_path(layout: Path, digest: str) -> Path:
    algorithm, _, encoded = digest.partition(":")
    return layout / "blobs" / algorithm / encoded


def media_type_of(manifest: bytes) -> str:
    """What a manifest says it is; OCI's need not say it."""
    document = json.loads(manifest)
    return str(document.get("mediaType") or (OCI_INDEX if "manifests" in document else OCI_IMAGE))


def describe_manifest(content: bytes) -> Descriptor:
    return {"mediaType": media_type_of(content), "digest": digest_of(content), "size": len(content)}


def references(manifest: bytes) -> list[Descriptor]:
    """What a manifest consists of, in its order; a subject is somebody else."""
    document = json.loads(manifest)
    found = [document["config"]] if "config" in document else []
    for field in ("layers", "blobs", "manifests"):
        found += document.get(field) or []
    return found


def read_index(layout: Path) -> list[Descriptor]:
    """The entries of a layout's index."""
    document = json.loads((layout / "index.json").read_bytes())
    assert document["schemaVersion"] == 2
    return document["manifests"]


def tags_of(layout: Path) -> dict[str, str]:
    """Every tag of a layout, and the digest that it means."""
    entries = [entry for entry in read_index(layout) if REF_NAME in entry.get("annotations", {})]
    found = {entry["annotations"][REF_NAME]: entry["digest"] for entry in entries}
    assert len(found) == len(entries), f"a tag is there twice: {entries}"
    return found


def blobs_of(layout: Path, digest: str) -> dict[str, bytes]:
    """All that an image consists of, down to its layers; every digest and size is verified."""
    content = blob_path(layout, digest).read_bytes()
    assert digest_of(content, digest.partition(":")[0]) == digest
    found = {digest: content}
    for descriptor in references(content):
        assert blob_path(layout, descriptor["digest"]).stat().st_size == descriptor["size"]
        if descriptor["mediaType"] in MANIFEST_TYPES:
            found |= blobs_of(layout, descriptor["digest"])
        else:
            found[descriptor["digest"]] = blob_path(layout, descriptor["digest"]).read_bytes()
            assert digest_of(found[descriptor["digest"]]) == descriptor["digest"]
    return found


class Image(NamedTuple):
    """An image, an index or an artifact in memory, with everything that it needs."""

    descriptor: Descriptor
    #: Configurations and layers, in the order in which clients send them.
    blobs: dict[str, bytes]
    #: Manifests, children before those that name them; the last one is the image itself.
    manifests: dict[str, bytes]

    @property
    def digest(self) -> str:
        return str(self.descriptor["digest"])

    @property
    def content(self) -> dict[str, bytes]:
        """All of it."""
        return self.blobs | self.manifests

    @classmethod
    def make(cls, manifest: bytes, blobs: Sequence[bytes], children: Sequence[bytes] = ()) -> Image:
        """An image from its parts."""
        return cls(
            describe_manifest(manifest),
            {digest_of(blob): blob for blob in blobs},
            {digest_of(content): content for content in (*children, manifest)},
        )

    @classmethod
    def read(cls, layout: Path, descriptor: Descriptor) -> Image:
        """The image that a layout has under a descriptor."""
        content = blobs_of(layout, descriptor["digest"])
        kinds = dict(_kinds(content, descriptor))
        manifests = {digest: content[digest] for digest, is_manifest in kinds.items() if is_manifest}
        blobs = {digest: content[digest] for digest, is_manifest in kinds.items() if not is_manifest}
        plain = {name: descriptor[name] for name in ("mediaType", "digest", "size")}
        return cls(plain, blobs, manifests)


def _kinds(content: dict[str, bytes], descriptor: Descriptor) -> Iterator[tuple[str, bool]]:
    """Digest, and whether it is a manifest; what is referred to comes first."""
    is_manifest = descriptor["mediaType"] in MANIFEST_TYPES
    if is_manifest:
        for reference in references(content[descriptor["digest"]]):
            yield from _kinds(content, reference)
    yield descriptor["digest"], is_manifest


def index_of(*entries: Descriptor) -> bytes:
    """An `index.json` as Go's encoder writes it."""
    return json.dumps({"schemaVersion": 2, "manifests": list(entries)}, separators=(",", ":")).encode()


def tagged(descriptor: Descriptor, tag: str) -> Descriptor:
    """The entry by which an index gives a tag."""
    return descriptor | {"annotations": {REF_NAME: tag}}


def write_layout(directory: Path, images: dict[str, Image]) -> Path:
    """A layout in a plain directory, with these tags."""
    (directory / "blobs/sha256").mkdir(parents=True)
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    for image in images.values():
        for digest, content in image.content.items():
            blob_path(directory, digest).write_bytes(content)
    entries = [tagged(image.descriptor, tag) for tag, image in images.items()]
    (directory / "index.json").write_bytes(index_of(*entries))
    return directory


class Originals:
    """The fixture's repositories as layouts in plain directories: what the mount's must be equal to."""

    def __init__(self, fixture: Path, directory: Path) -> None:
        self.tags = told_tags(fixture)
        self._directory = directory
        storage = Storage(fixture / "storage")
        for repository in {tag.repository for tag in self.tags}:
            tags = [tag for tag in self.tags if tag.repository == repository]
            self._copy(storage, self.layout(repository), tags)

    def _copy(self, storage: Storage, layout: Path, tags: Sequence[Tag]) -> None:
        (layout / "blobs/sha256").mkdir(parents=True)
        (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        entries = []
        for tag in tags:
            content = storage.blob(tag.digest).read_bytes()
            self._copy_blobs(storage, layout, tag.digest, tag.media_type)
            descriptor = {"mediaType": tag.media_type, "digest": tag.digest, "size": len(content)}
            entries.append(tagged(descriptor, tag.tag))
        (layout / "index.json").write_bytes(index_of(*entries))

    def _copy_blobs(self, storage: Storage, layout: Path, digest: str, media_type: str) -> None:
        shutil.copyfile(storage.blob(digest), blob_path(layout, digest))
        if media_type in MANIFEST_TYPES:
            for descriptor in references(storage.blob(digest).read_bytes()):
                self._copy_blobs(storage, layout, descriptor["digest"], descriptor["mediaType"])

    def layout(self, repository: str) -> Path:
        """The layout of a repository, with all its tags."""
        return self._directory / repository / "layout"

    def tag(self, repository: str, tag: str) -> Tag:
        return next(each for each in self.tags if (each.repository, each.tag) == (repository, tag))

    def image(self, repository: str, tag: str) -> Image:
        """The image that a tag means."""
        entries = {entry["annotations"][REF_NAME]: entry for entry in read_index(self.layout(repository))}
        return Image.read(self.layout(repository), entries[tag])


def assert_complete(layout: Path, tag: str, image: Image) -> None:
    """The layout has the tag, it means this image, and all of the image is there."""
    assert tags_of(layout).get(tag) == image.digest, f"{tag} is not {image.digest}: {tags_of(layout)}"
    assert blobs_of(layout, image.digest) == image.content


def tree_of(root: Path) -> dict[str, tuple[object, ...]]:
    """What is below `root`, with owners, modes, times, and the digests of files: what an unpacked image consists of."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(directory, name)
            status = path.lstat()
            about: tuple[object, ...] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)
            if path.is_symlink():
                about += (os.readlink(path),)
            elif path.is_file():
                about += (digest_of(path.read_bytes()),)
            found[str(path.relative_to(root))] = about
    return found
