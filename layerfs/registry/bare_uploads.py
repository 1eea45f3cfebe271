"""Uploads of which a listing has found `startedat` and nothing else.

No storage makes or deletes several files at once, and `startedat` is the first that is made of an upload and the last
that is deleted. So such an upload is just being begun, and its name comes next; or it is just being deleted; or this is
all that was ever there. Who listed the first two would show a UUID that nobody has given, and that is gone when
somebody looks. So they are looked at again for a moment.
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

#: If there are more in one repository, most were left by somebody: then none is looked at.
_MOST: Final = 64

#: Repositories of which it is remembered what was looked at.
_REPOSITORIES_KEPT: Final = 256

_Found: TypeAlias = UploadInfo | DriverError | None


class BareUploads:
    """Waits for those that may become others. `look` says what uploads of a repository are, in order."""

    def __init__(self, look: Callable[[str, Sequence[str]], Awaitable[FoundUploads]]) -> None:
        self._look = look
        # Those of which there was nothing more after a moment: nobody waits for them again.
        self._lasting: OrderedDict[str, Collection[str]] = OrderedDict()

    async def settle(self, name: str, listed: Uploads, bare: Collection[str]) -> FoundUploads:
        """The uploads of a listing, with those whose UUIDs are among `bare` as they are a moment later.

        The moment is over as soon as each of these is gone, or has more than its beginning.
        """
        if len(bare) > _MOST:
            return [*listed]
        lasting = [uuid for uuid in bare if uuid in self._lasting.get(name, ())]
        found = await self._look_again(name, [uuid for uuid in bare if uuid not in lasting])
        self._keep(name, [*lasting, *(uuid for uuid, info in found.items() if isinstance(info, UploadInfo))])
        return [*(info for info in listed if info.uuid not in found), *found.values()]

    async def _look_again(self, name: str, uuids: Sequence[str]) -> dict[str, _Found]:
        found: dict[str, _Found] = {}
        waiting = list(uuids)
        for look in range(_LOOKS):
            if not waiting:
                break
            if look:
                await trio.sleep(_DELAY)
            found |= zip(waiting, await self._look(name, waiting), strict=True)
            waiting = [uuid for uuid in waiting if is_bare(found[uuid])]
        return found

    def _keep(self, name: str, uuids: Sequence[str]) -> None:
        self._lasting.pop(name, None)
        if uuids:
            self._lasting[name] = frozenset(uuids)
        if len(self._lasting) > _REPOSITORIES_KEPT:
            self._lasting.popitem(last=False)


def is_bare(info: _Found) -> bool:
    """Whether it has neither a name nor bytes, not even none."""
    return isinstance(info, UploadInfo) and info.file_name == info.uuid and not info.size and not info.modified_at
