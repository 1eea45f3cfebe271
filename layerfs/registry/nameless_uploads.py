"""Uploads that a listing has found without a name: those of registries never have one, ours before it is written.

No storage makes or deletes several files at once. Of our uploads `startedat` is made first, and goes last; the name is
the second. So an upload without one can be just being begun, or deleted. Who listed it then would show a UUID that
nobody has given it, and that is gone when somebody looks. Therefore it is looked at again, for a moment, unless there
is more of it than its beginning.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, TypeAlias

import trio

from layerfs.errors import DriverError
from layerfs.registry.upload_info import FoundUploads, UploadInfo, Uploads

#: How often, and how many seconds apart, they are looked at again.
_LOOKS: Final = 6
_DELAY: Final = 0.05

#: If more were found than this in one repository that were not there before, a registry has begun them, or somebody has
#: left them: then none is looked at.
_MOST: Final = 64

#: Uploads that are remembered, in all repositories together.
_KEPT: Final = 20_000

_Found: TypeAlias = UploadInfo | DriverError | None


class NamelessUploads:
    """Waits for those that may get a name, or go.

    `look` says what uploads of a repository are, in order: whether there are bytes, then their names, and at last
    whether there is `startedat`. So what has bytes, and no name, never gets one.
    """

    def __init__(self, look: Callable[[str, Sequence[str]], Awaitable[FoundUploads]]) -> None:
        self._look = look
        # By repository, those that had no name after a moment: nobody waits for them again.
        self._known: OrderedDict[str, Collection[str]] = OrderedDict()

    async def settle(self, name: str, listed: Uploads, nameless: Sequence[str]) -> FoundUploads:
        """The uploads of a listing, with those whose UUIDs are among `nameless` as they are a moment later.

        The moment is over as soon as each of these is gone, or has more than its beginning.
        """
        known = self._known.get(name, ())
        new = [uuid for uuid in nameless if uuid not in known]
        found = await self._look_again(name, new) if len(new) <= _MOST else {}
        gone = {uuid for uuid, info in found.items() if not isinstance(info, UploadInfo)}
        self._keep(name, [uuid for uuid in nameless if uuid not in gone])
        return [*(info for info in listed if info.uuid not in found), *found.values()]

    async def _look_again(self, name: str, uuids: Sequence[str]) -> dict[str, _Found]:
        found: dict[str, _Found] = {}
        waiting = uuids
        for look in range(_LOOKS):
            if not waiting:
                break
            if look:
                await trio.sleep(_DELAY)
            found |= zip(waiting, await self._look(name, waiting), strict=True)
            waiting = [uuid for uuid in waiting if _is_bare(found[uuid])]
        return found

    def _keep(self, name: str, uuids: Collection[str]) -> None:
        self._known.pop(name, None)
        if uuids:
            self._known[name] = frozenset(uuids)
        while sum(map(len, self._known.values())) > _KEPT:
            self._known.popitem(last=False)


def _is_bare(info: _Found) -> bool:
    """Whether it has neither a name nor bytes, not even none."""
    return isinstance(info, UploadInfo) and info.file_name == info.uuid and not info.size and not info.modified_at
