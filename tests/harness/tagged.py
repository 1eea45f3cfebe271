"""A repository on a mount with manifests and tags in it: put by hand in storage, or looked at there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.images import encode, oci_image
from harness.mount import Mount
from harness.repository import MountedRepository
from harness.storage import Entry, Storage, digest_of, snapshot
from harness.stored_path import StoredPath
from harness.stores import Store


class TaggedRepository(MountedRepository):
    """What tests of manifests and tags do with a repository."""

    def manifest(self, name: str) -> Path:
        return self.path / "_manifests" / name

    def tag(self, name: str) -> Path:
        return self.path / "_tags" / name

    @property
    def manifests(self) -> list[str]:
        return sorted(os.listdir(self.path / "_manifests"))

    @property
    def tags(self) -> dict[str, str]:
        """Every tag that is listed, and the digest that it leads to."""
        return {name: os.readlink(self.tag(name)).removeprefix("../_manifests/") for name in self.tags_listed}

    @property
    def tags_listed(self) -> list[str]:
        """The names alone, which may be as old as listings may be."""
        return sorted(os.listdir(self.path / "_tags"))

    # --- in storage ------------------------------------------------------------------------------------------

    def image(self, text: str = "", **more: object) -> bytes:
        """A new manifest of an image whose config and layer are there; the manifest itself is not."""
        config = json.dumps({"os": "linux", "architecture": "amd64", "for": text}).encode()
        layer = f"layer of {text}".encode()
        for blob in (config, layer):
            self.storage.put_layer(self.name, blob)
        return encode(oci_image(config, (layer,)) | more)

    def store_manifest(self, content: bytes, *tags: str) -> str:
        """Puts a manifest as a registry would, behind the mount's back."""
        digest = self.storage.put_blob(content)
        self._write(self._stored_manifests / "revisions/sha256" / digest[7:] / "link", digest)
        for tag in tags:
            self.store_tag(tag, digest)
        return digest

    def store_tag(self, tag: str, digest: str) -> None:
        """Tags as a registry would, behind the mount's back."""
        self._write(self._stored_manifests / "tags" / tag / "index/sha256" / digest[7:] / "link", digest)
        self._write(self._stored_manifests / "tags" / tag / "current/link", digest)

    def _write(self, path: Path | StoredPath, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @property
    def _stored_manifests(self) -> Path | StoredPath:
        return self.storage.repository(self.name) / "_manifests"

    @property
    def stored_tags(self) -> dict[str, str]:
        """What each tag means in storage."""
        return {path.parts[-3]: path.read_text() for path in self._stored_manifests.glob("tags/*/current/link")}

    @property
    def stored_revisions(self) -> set[str]:
        """The manifests that are linked in storage; each link must hold its own digest."""
        found = set()
        for path in self._stored_manifests.glob("revisions/sha256/*/link"):
            assert path.read_text() == f"sha256:{path.parts[-2]}"
            found.add(path.read_text())
        return found

    def history(self, tag: str) -> set[str]:
        """All that a tag has meant, by its index in storage."""
        return {path.read_text() for path in self._stored_manifests.glob(f"tags/{tag}/index/sha256/*/link")}

    def assert_put(self, content: bytes, *tags: str) -> str:
        """The manifest is stored, exactly, linked, meant by these tags, and shown at once; no upload is left."""
        digest = digest_of(content)
        assert self.stored(digest) == content
        assert digest in self.stored_revisions
        assert digest in self.manifests
        assert self.manifest(digest).read_bytes() == content
        for tag in tags:
            assert self.stored_tags[tag] == digest
            assert digest in self.history(tag)
            assert self.tags[tag] == digest
            assert self.tag(tag).read_bytes() == content
        assert self.storage.uploads(self.name) == []
        return digest

    def all_that_is_stored(self) -> dict[str, Entry]:
        """Everything in the storage."""
        return snapshot(self.storage.root)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """The body changes nothing in storage, nor in what is shown."""
        before, shown = self.all_that_is_stored(), (self.manifests, self.tags, self.uploads)
        yield
        assert self.all_that_is_stored() == before
        assert (self.manifests, self.tags, self.uploads) == shown


class TaggedMount:
    """A small storage with a mount, for all tests of a module; each gets a repository of its own."""

    def __init__(self, directory: Path, *options: str, store: Store | None = None) -> None:
        place = directory / "storage"
        self.storage = Storage.create(place if store is None else store.root(place))
        self.mount = Mount(self.storage.source, directory / "mnt", *options)
        self._count = 0

    def new_repository(self) -> TaggedRepository:
        self._count += 1
        repository = TaggedRepository(self.mount, self.storage, f"tests/r{self._count}")
        self.storage.make_repository(repository.name)
        return repository

    def check(self) -> None:
        """The daemon lives, and has logged nothing that was not declared."""
        assert self.mount.is_alive, self.mount.log_text()
        self.mount.check_log()
