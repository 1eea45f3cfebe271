"""The page of `layerfs du --html`: one document, which loads nothing, with everything that was measured in it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib import resources
from typing import Any, Final

from layerfs.digest import Digest
from layerfs.usage import ImageUse, RepositoryUse, StorageUse

#: Where the data goes.
_PLACE: Final = "__DATA__"


def make_page(use: StorageUse, *, source: str) -> str:
    """The HTML of the page, in ASCII; `source` is the storage as everybody may see it."""
    template = resources.files("layerfs.pages").joinpath("usage.html").read_text(encoding="utf-8")
    before, after = template.encode("ascii", "xmlcharrefreplace").decode().split(_PLACE)
    # In a <script> nothing is escaped, and `</script` ends it wherever it stands. JSON can do without `<`.
    content = json.dumps(_PageData(use).fields(source), separators=(",", ":")).replace("<", "\\u003c")
    return before + content + after


class _PageData:
    """The measured storage in the words of the page, every blob once."""

    def __init__(self, use: StorageUse) -> None:
        self._use = use
        self._numbers: dict[Digest, int] = {digest: number for number, digest in enumerate(use.sizes)}

    def fields(self, source: str) -> dict[str, Any]:
        use = self._use
        return {
            "source": source,
            "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "problems": use.problems[:50],
            "totals": {
                "linked": use.linked_bytes,
                "deduplicated": use.deduplicated_bytes,
                "orphans": use.orphans,
                "orphaned": use.orphaned_bytes,
                "uploads": sum(sum(each.uploads) for each in use.repositories),
            },
            "blobs": [[str(digest), size, use.links[digest]] for digest, size in use.sizes.items()],
            "repositories": [self._repository(each) for each in use.repositories],
        }

    def _repository(self, repository: RepositoryUse) -> dict[str, Any]:
        in_images: set[Digest] = set()
        for image in repository.images:
            in_images.update(image.sizes())
        return {
            "name": repository.name,
            "size": repository.size,
            "unique": self._use.unique_bytes(repository),
            "freed": self._use.freed_bytes(repository),
            "tags": len(repository.tags),
            "images": [self._image(image) for image in repository.images],
            "rest": [self._numbers[digest] for digest in repository.sizes if digest not in in_images],
        }

    def _image(self, image: ImageUse) -> dict[str, Any]:
        there = [part for part in image.parts if part.size is not None]
        return {
            "digest": str(image.digest),
            "blob": self._numbers[image.digest],
            "tags": list(image.tags),
            "platform": image.platform,
            "parts": [self._numbers[part.digest] for part in there],
            "configs": [number for number, part in enumerate(there) if part.kind == "config"],
            "missing": sum(part.size is None for part in image.parts),
            "problem": image.problem,
            "children": [self._image(child) for child in image.children],
        }
