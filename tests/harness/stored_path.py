"""Paths in an object store, with those of pathlib's methods that tests of a registry's storage need."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.stores import ObjectStore


@dataclass(frozen=True)
class StoredFile:
    """What a listing says of a file. Equal checksums are equal content, within one store."""

    size: int
    #: Seconds since 1970; 0 if unknown.
    modified: float
    checksum: str

    @property
    def st_size(self) -> int:
        return self.size

    @property
    def st_mtime(self) -> float:
        return self.modified


class StoredPath:
    """A key in a store. A directory is what has keys below it, so `mkdir` has nothing to do.

    It is not `os.PathLike`: who gives it to a system call or a command is told so.
    """

    def __init__(self, store: ObjectStore, path: str | PurePosixPath) -> None:
        self.store = store
        self.path = PurePosixPath(path)

    # --- as a value --------------------------------------------------------------------------------------------------

    def __truediv__(self, name: str) -> StoredPath:
        return StoredPath(self.store, self.path / name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredPath) and (self.store, self.path) == (other.store, other.path)

    def __lt__(self, other: StoredPath) -> bool:
        return self.path < other.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"StoredPath({self.store.name!r}, {str(self.path)!r})"

    @property
    def url(self) -> str:
        """What `layerfs mount` takes as SOURCE to have it mounted."""
        return self.store.url(str(self.path))

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def parts(self) -> tuple[str, ...]:
        return self.path.parts

    @property
    def parent(self) -> StoredPath:
        return StoredPath(self.store, self.path.parent)

    def with_name(self, name: str) -> StoredPath:
        return StoredPath(self.store, self.path.with_name(name))

    def relative_to(self, other: StoredPath) -> PurePosixPath:
        return self.path.relative_to(other.path)

    # --- files -------------------------------------------------------------------------------------------------------

    @property
    def is_data_of_upload(self) -> bool:
        """Whether this is where a registry has the bytes of an unfinished upload."""
        return self.name == "data" and self.parent.parent.name == "_uploads"

    def read_bytes(self) -> bytes:
        return self.store.get(str(self.path))

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def write_bytes(self, content: bytes) -> None:
        (self.store.put_upload if self.is_data_of_upload else self.store.put)(str(self.path), content)

    def write_text(self, text: str) -> None:
        self.write_bytes(text.encode())

    def touch(self) -> None:
        self.write_bytes(b"")

    def append(self, content: bytes) -> None:
        """Adds to an unfinished upload, as another node does."""
        self.store.append(str(self.path), content)

    def holds(self, content: bytes) -> bool:
        """Whether the file is exactly this; of an unfinished upload too, which not every store lets be read."""
        return self.store.holds(str(self.path), content)

    def unlink(self) -> None:
        self.stat()
        self.store.delete(str(self.path))

    def rename(self, target: StoredPath) -> None:
        """Puts the content of a file elsewhere, as registries do."""
        self.store.move(str(self.path), str(target.path))

    def stat(self) -> StoredFile:
        """Size and time. Raises `FileNotFoundError`, for a directory too."""
        found = self.store.list(str(self.path)).get(str(self.path))
        if found is None:
            raise FileNotFoundError(str(self.path))
        return found

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        return str(self.path) in self.store.list(str(self.path))

    # --- directories -------------------------------------------------------------------------------------------------

    def files(self) -> dict[str, StoredFile]:
        """All files below, by relative path."""
        prefix = f"{self.path}/"
        return {key.removeprefix(prefix): file for key, file in self.store.list(prefix).items()}

    def is_dir(self) -> bool:
        return bool(self.files())

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: there are no empty directories."""

    def iterdir(self) -> Iterator[StoredPath]:
        names = {name.partition("/")[0] for name in self.files()}
        return (self / name for name in sorted(names))

    def glob(self, pattern: str) -> Iterator[StoredPath]:
        """Files only, without those whose names begin with a dot where the pattern has a star."""
        wanted = re.compile(re.escape(pattern).replace(r"\*\*/", "(?:.+/)?").replace(r"\*", "[^./][^/]*"))
        return (self / name for name in sorted(self.files()) if wanted.fullmatch(name))

    def rglob(self, pattern: str) -> Iterator[StoredPath]:
        return self.glob(f"**/{pattern}")
