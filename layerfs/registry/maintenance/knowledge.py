"""What a check has to remember of one place to judge another: which blobs are meant, how large, which images exist.

This is what grows with the registry: some 200 bytes for each blob that anything refers to, nothing for one that is
linked a second time. Digests are kept as their bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from layerfs.digest import Digest

#: Sizes that are none: nobody has said one; two manifests say different ones, so that neither can be believed.
_UNKNOWN: Final = -1
_DISPUTED: Final = -2


class Meant:
    """The blobs that links and manifests lead to."""

    def __init__(self) -> None:
        self._sizes: dict[bytes, int] = {}

    def __contains__(self, digest: Digest) -> bool:
        return _key(digest) in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, digest: Digest, size: int = _UNKNOWN) -> None:
        """`size` (bytes) is what a manifest says."""
        known = self._sizes.setdefault(_key(digest), size)
        if size >= 0 and known != size:
            self._sizes[_key(digest)] = size if known == _UNKNOWN else _DISPUTED

    def size_of(self, digest: Digest) -> int | None:
        """The bytes that manifests agree on; None if none says any, or they do not agree."""
        size = self._sizes.get(_key(digest), _UNKNOWN)
        return size if size >= 0 else None

    def canonical(self) -> Iterable[Digest]:
        """Those that a blob can be stored under."""
        for key in list(self._sizes):
            if len(key) == 32:
                yield Digest.parse(f"sha256:{key.hex()}")


class ImagesWithoutManifest:
    """Repositories without `_manifests` that link all blobs of an image whose manifest is somewhere in the storage.

    That is how a repository that has lost its manifests differs from one that was only given blobs: somebody uploaded
    or mounted single ones, as registries do before the manifest comes.
    """

    def __init__(self) -> None:
        self._candidates: dict[str, frozenset[bytes]] = {}
        self._by_blob: dict[bytes, list[str]] = {}
        self.found: set[str] = set()

    def add_candidate(self, name: str, linked: Iterable[Digest]) -> None:
        """A repository that has no `_manifests`."""
        blobs = frozenset(_key(digest) for digest in linked)
        # An image is a config and a layer at the least.
        if len(blobs) < 2:
            return
        self._candidates[name] = blobs
        for blob in blobs:
            self._by_blob.setdefault(blob, []).append(name)

    def see_image(self, references: Iterable[Digest]) -> None:
        """An image that refers to these blobs."""
        blobs = {_key(digest) for digest in references}
        if len(blobs) < 2:
            return
        rarest = min((self._by_blob.get(blob, []) for blob in blobs), key=len)
        self.found.update(name for name in rarest if blobs <= self._candidates[name])


def _key(digest: Digest) -> bytes:
    return bytes.fromhex(digest.hex)
