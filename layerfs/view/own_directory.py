"""What the directories that every repository has (`_layers`, `_manifests`, …) have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import ClassVar

from layerfs.view.nodes import Attributes, Directory, DirectoryEntry, ListedNode, directory_attributes
from layerfs.view.state import ExpiringListings, MountState


class OwnDirectory(Directory):
    """One of the directories that every repository has: `PLACE` in `repository`."""

    PLACE: ClassVar[str]

    def __init__(self, state: MountState, repository: str) -> None:
        self.path = f"{repository}/{self.PLACE}"
        self.repository = repository
        self._state = state

    @property
    def key(self) -> Hashable:
        return (self.PLACE, self.repository)

    async def attributes(self) -> Attributes:
        state = self._state
        return directory_attributes(
            permissions=state.permissions(0o755), modified_at=state.mounted_at, timeout=state.options.metadata_ttl
        )

    async def extended_attributes(self) -> dict[str, str]:
        return {"repository": self.repository}

    async def _remembered(
        self, listings: ExpiringListings[DirectoryEntry], list_nodes: Callable[[], Awaitable[Sequence[ListedNode]]]
    ) -> Sequence[DirectoryEntry]:
        """The listing from memory while it is fresh, else what `list_nodes` gives."""

        async def entries() -> Sequence[DirectoryEntry]:
            return [node.entry() for node in await list_nodes()]

        return await listings.get_or_list(self.repository, entries)
