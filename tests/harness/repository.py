"""A repository on a mount, with its place in storage: short words for what most tests do."""

from __future__ import annotations

import os
from pathlib import Path

from harness.commands import append, get_xattr
from harness.mount import Mount
from harness.storage import Storage, digest_of
from harness.stored_path import StoredPath


class MountedRepository:
    """Repository `name` of `storage`, seen through `mount`."""

    def __init__(self, mount: Mount, storage: Storage, name: str) -> None:
        self.mount = mount
        self.storage = storage
        self.name = name

    @property
    def path(self) -> Path:
        return self.mount.path / self.name

    def layer(self, digest: str) -> Path:
        return self.path / "_layers" / digest

    def upload(self, name: str) -> Path:
        return self.path / "_uploads" / name

    @property
    def layers(self) -> list[str]:
        return sorted(os.listdir(self.path / "_layers"))

    @property
    def uploads(self) -> list[str]:
        return sorted(os.listdir(self.path / "_uploads"))

    def put_upload(self, name: str, data: bytes) -> Path:
        """Uploads `data` and closes the file; nothing is committed."""
        append(self.upload(name), data)
        return self.upload(name)

    def commit(self, name: str, digest: str) -> Path:
        """What `mv _uploads/name _layers/digest` does."""
        os.rename(self.upload(name), self.layer(digest))
        return self.layer(digest)

    def put_layer(self, data: bytes, name: str = "layer") -> Path:
        """Uploads and commits `data` through the mount."""
        self.put_upload(name, data)
        return self.commit(name, digest_of(data))

    def upload_directory(self, name: str) -> Path | StoredPath:
        """Where the storage has this upload."""
        return self.storage.upload(self.name, get_xattr(self.upload(name), "user.layerfs.upload.uuid"))

    def stored(self, digest: str) -> bytes:
        """The blob's bytes in storage, which is where they count."""
        return self.storage.blob(digest).read_bytes()

    def assert_stored(self, data: bytes, digest: str | None = None) -> None:
        """The blob is stored under its sha256 with exactly these bytes, linked, and no upload is left."""
        canonical = digest_of(data)
        assert self.stored(canonical) == data
        for linked in {canonical, digest or canonical}:
            assert self.storage.link(self.name, linked).read_bytes() == canonical.encode()
            assert self.layer(linked).read_bytes() == data
        assert self.storage.uploads(self.name) == []
