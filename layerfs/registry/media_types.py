"""`MediaTypes`: what kinds of manifests this process has seen, by digest, so that listing them need not read them.

The media type of content never changes, so nothing here is ever stale; whether the manifest is still there is for the
caller to ask storage. Not the `DescriptorCache`, which is shared with registries: they serve the media type in it as
that of a layer.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Final

from layerfs.digest import Digest

#: Manifests that are remembered, as many as a large repository has tags: some 22 MB.
DEFAULT_LIMIT: Final = 50_000


class MediaTypes:
    """Remembers the `limit` manifests that were learnt or found last."""

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._media_types: OrderedDict[Digest, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._media_types)

    def find(self, digest: Digest) -> str | None:
        """The media type of the manifest, if it is remembered."""
        media_type = self._media_types.get(digest)
        if media_type is not None:
            self._media_types.move_to_end(digest)
        return media_type

    def learn(self, digest: Digest, media_type: str) -> None:
        """Remembers it. Whoever calls has seen that the content matches the digest: damage does not last, this does."""
        # There are a handful of different ones, each cut out of a document: kept once.
        self._media_types[digest] = sys.intern(media_type)
        self._media_types.move_to_end(digest)
        if len(self._media_types) > self._limit:
            self._media_types.popitem(last=False)
