"""Sources in which one storage lies in a file of another, as fsspec writes them: `zip://DIRECTORY::SOURCE`.

The first part may leave out what it does not need: `zip::SOURCE`, or `zip://::SOURCE`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, cast

from layerfs.driver.archive import ArchiveKind
from layerfs.errors import UnknownSource

_CHAIN: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9_+.-]*)(?:://(?P<inside>[^\[\]]*?))?::(?P<target>.*)", re.DOTALL
)

_ARCHIVES: Final = frozenset({"tar", "zip"})

#: What else fsspec has to put in front of another source, and why that is not done.
_REFUSED: Final = {
    **dict.fromkeys(
        ("blockcache", "cached", "filecache", "simplecache"),
        "such a cache would hide what others change: leave it out, and keep content with --cache-dir",
    ),
    "data": "it would be a storage of one file",
    "dir": "leave it out, and name the directory itself",
    "libarchive": "of archives only zip:: and tar:: (also with gzip) can be mounted: repack it",
    **dict.fromkeys(("async_wrapper", "asyncwrapper", "generic", "reference"), "name the storage itself"),
}


@dataclass(frozen=True, slots=True)
class ArchiveSource:
    """The directory `inside` of the archive that `target` is the path or URL of."""

    kind: ArchiveKind
    inside: str
    target: str

    @property
    def source(self) -> str:
        """As a user would write it."""
        return f"{self.kind}://{self.inside}::{self.target}" if self.inside else f"{self.kind}::{self.target}"


def is_chained(source: str) -> bool:
    """Whether `source` names one storage in another, whether that can be used or not."""
    match = _CHAIN.fullmatch(source)
    return match is not None and match["scheme"].lower() in _ARCHIVES | _REFUSED.keys()


def check_whole(url: str) -> None:
    """Raises `UnknownSource` for a URL that would only be the first part of a chain."""
    scheme = url.partition("://")[0].lower()
    if scheme in _ARCHIVES:
        raise UnknownSource(f"{scheme}://…", f"of an archive: write {scheme}::/path, or {scheme}::URL")
    if scheme in _REFUSED:
        raise UnknownSource(f"{scheme}://…", _REFUSED[scheme])


def parse_archive(source: str) -> ArchiveSource | None:
    """The archive that `source` means; None if it means something else.

    Raises `UnknownSource` for what fsspec would chain in other ways.
    """
    match = _CHAIN.fullmatch(source)
    # A path, or the name of an object, may have two colons as well.
    if match is None or not is_chained(source):
        return None
    scheme = match["scheme"].lower()
    if scheme in _REFUSED:
        raise UnknownSource(f"{scheme}::…", _REFUSED[scheme])
    target = match["target"]
    if not target:
        raise UnknownSource(f"{scheme}::", f"name the archive: {scheme}::/path, or {scheme}::URL")
    if parse_archive(target) is not None:
        raise UnknownSource(f"{scheme}::…", "an archive in an archive cannot be mounted: unpack the outer one")
    return ArchiveSource(cast(ArchiveKind, scheme), (match["inside"] or "").strip("/"), target)
