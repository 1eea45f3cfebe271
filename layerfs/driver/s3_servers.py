"""In what servers of S3 differ that cannot be seen from what they answer, and how they are told apart.

What can be learned from answers is learned from them (`s3_copies`); this is the rest, found with real servers. They are
known by the headers of their answers. Where a proxy takes these away, a server counts as one without peculiarities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Peculiarities:
    """What a driver must do otherwise for a server. By default, what AWS and Ceph need."""

    #: Content that is sent without TLS must have a checksum: it is taken without being compared with what was signed.
    wants_checksums: bool = False
    #: An upload that was completed is still found by its id, and its parts can be replaced, which destroys the object.
    #: Only the list of open uploads tells.
    keeps_completed: bool = False
    #: A part that is copied from the whole of an object, and not from a range of it, is listed without its ETag.
    forgets_etag_of_whole: bool = False


#: SeaweedFS 4.48.
_SEAWEEDFS: Final = Peculiarities(wants_checksums=True)
#: OpenStack Swift 2.30.
_SWIFT: Final = Peculiarities(keeps_completed=True, forgets_etag_of_whole=True)
_NONE: Final = Peculiarities()


def peculiarities(headers: Mapping[str, str]) -> Peculiarities:
    """Those of the server that answered with these headers, their names in lower case."""
    if headers.get("server", "").startswith("SeaweedFS"):
        return _SEAWEEDFS
    if "x-openstack-request-id" in headers:
        return _SWIFT
    return _NONE
