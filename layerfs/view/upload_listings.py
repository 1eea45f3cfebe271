"""What storage says of uploads: which there are in each repository, and how long each is.

Both hold for the time to live from when the answer was there, or for as long as that took, and are amended at once by
what this mount does itself: also an answer that is still on its way, because what was done meanwhile may be missing
from it. So however many uploads there are, and however long it takes to list them, one more costs what the first has
cost.

Where storage is near, each look at an upload asks it how long it is: a registry may be appending, and the size is where
to resume. Far away that is a request for each, and who looks at one after the other, as `ls -l` does, would wait for
each. So there it is asked for at most once in the time to live, and ahead of who looks, as files are read ahead.
"""

from __future__ import annotations

import bisect
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from layerfs.errors import DriverError, LayerfsError, LayerUploadUnknown
from layerfs.registry import LayerService, ListedUpload, UploadInfo

#: Repositories whose uploads are remembered, and uploads in all of them together.
_REPOSITORIES_KEPT: Final = 256
_UPLOADS_KEPT: Final = 200_000

#: Uploads that are asked for at a time: by whoever looks first after the directory was listed, and at most. The latter
#: keep a store busy for about a second.
_FIRST_AHEAD: Final = 16
_MOST_AHEAD: Final = 256


class UploadListing:
    """The uploads of one repository, by the names that they are shown under.

    Two nodes can begin uploads of the same name at once: the oldest keeps it, the others show their UUIDs.
    """

    def __init__(self, uploads: Iterable[ListedUpload]) -> None:
        self._uploads: dict[str, ListedUpload] = {}
        # The uploads that have a name in storage, whatever they are shown under; and the oldest of these.
        self._called: dict[str, dict[str, ListedUpload]] = {}
        self._oldest: dict[str, ListedUpload] = {}
        self._in_order: list[tuple[str, ListedUpload]] | None = None
        for upload in uploads:
            self.put(upload)

    def __len__(self) -> int:
        return len(self._uploads)

    def __contains__(self, uuid: str) -> bool:
        return uuid in self._uploads

    def __iter__(self) -> Iterator[ListedUpload]:
        return iter(self._uploads.values())

    def find(self, file_name: str) -> ListedUpload | None:
        """The upload that is shown under a name."""
        upload = self._uploads.get(file_name) or self._oldest.get(file_name)
        return upload if upload is not None and self._shown_name(upload) == file_name else None

    def shown(self) -> Sequence[tuple[str, ListedUpload]]:
        """All, in the order of the names that they are shown under."""
        if self._in_order is None:
            self._in_order = sorted(((self._shown_name(upload), upload) for upload in self), key=lambda shown: shown[0])
        return self._in_order

    def position(self, uuid: str) -> int:
        """Where in `shown` an upload is, which must be there."""
        name = self._shown_name(self._uploads[uuid])
        return bisect.bisect_left(self.shown(), name, key=lambda shown: shown[0])

    def put(self, upload: ListedUpload) -> None:
        """Adds an upload, or puts it in the place of what was known of it."""
        self.remove(upload.uuid)
        self._uploads[upload.uuid] = upload
        self._called.setdefault(upload.file_name, {})[upload.uuid] = upload
        oldest = self._oldest.get(upload.file_name)
        if oldest is None or upload.age < oldest.age:
            self._oldest[upload.file_name] = upload

    def remove(self, uuid: str) -> None:
        """The upload is no more, if there was one."""
        self._in_order = None
        upload = self._uploads.pop(uuid, None)
        if upload is None:
            return
        called = self._called[upload.file_name]
        del called[uuid]
        if not called:
            del self._called[upload.file_name], self._oldest[upload.file_name]
        elif self._oldest[upload.file_name] is upload:
            self._oldest[upload.file_name] = min(called.values(), key=lambda other: other.age)

    def rename(self, uuid: str, file_name: str) -> None:
        """Gives an upload another name, if it is there."""
        upload = self._uploads.get(uuid)
        if upload is not None:
            self.put(replace(upload, file_name=file_name))

    def _shown_name(self, upload: ListedUpload) -> str:
        name = upload.file_name
        # Nobody takes the UUID of another for a name.
        return name if name not in self._uploads and self._oldest[name] is upload else upload.uuid


@dataclass(slots=True)
class _Asking:
    """A listing that is under way, since `began_at` (monotonic seconds)."""

    began_at: float
    ended: trio.Event = field(default_factory=trio.Event)
    error: LayerfsError | None = None
    #: What was done here meanwhile, and to which uploads.
    changes: list[Callable[[UploadListing], None]] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)
    #: Whether something else may have changed: it is not to be believed.
    is_void: bool = False


@dataclass(frozen=True, slots=True)
class _Look:
    """What an upload was, asked for at `asked_at` and good until `until` (both monotonic seconds)."""

    info: UploadInfo
    asked_at: float
    until: float


class _Repository:
    """What is known of the uploads of one repository."""

    def __init__(self) -> None:
        self.listing: UploadListing | None = None
        #: When that was begun, and until when it is fresh (both monotonic seconds).
        self.began_at = self.until = 0.0
        self.asking: _Asking | None = None
        self.looks: dict[str, _Look] = {}
        #: Uploads that are being asked how long they are, and what is set when that is over.
        self.looking: dict[str, trio.Event] = {}
        # What was asked ahead last: places in the listing, how many, and which of these nobody has looked at yet.
        self._ahead = range(0)
        self._asked = 0
        self._unseen: set[str] = set()
        #: Until when somebody who has listed the directory is expected to look at all of them (monotonic seconds).
        self.shown_until = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for storage."""
        return self.asking is None and not self.looking

    def fresh_listing(self, asked_at: float) -> UploadListing | None:
        """The listing, for somebody who has asked for it at `asked_at`."""
        is_fresh = time.monotonic() < self.until or self.began_at > asked_at
        return self.listing if is_fresh else None

    def fresh_look(self, uuid: str, asked_at: float) -> UploadInfo | None:
        """What an upload is, for somebody who has asked for it at `asked_at`."""
        look = self.looks.get(uuid)
        if look is None or (time.monotonic() >= look.until and look.asked_at <= asked_at):
            return None
        self._unseen.discard(uuid)
        return look.info

    def change(self, uuid: str, change: Callable[[UploadListing], None]) -> None:
        """Something was done to an upload, as whoever lists them now is to find it."""
        if self.listing is not None:
            change(self.listing)
        if self.asking is not None:
            self.asking.changes.append(change)
            self.asking.changed.add(uuid)

    def take_ahead(self, uuid: str, most: int) -> list[ListedUpload]:
        """The upload, if it is listed, and those that are likely to be looked at next, at most so many in all.

        While they are looked at one after the other, that is twice as many as last time. But if not all of those were
        looked at, it is as many as were: who does something after each look, as `rm` does, gets no further in the time
        for which the answers are good.
        """
        listing = self.listing
        if listing is None or uuid not in listing:
            return []
        position, count = listing.position(uuid), 1
        now = time.monotonic()
        if now < self.shown_until:
            count = _FIRST_AHEAD
        elif position in range(self._ahead.start, self._ahead.stop + len(self._ahead)):
            count = (self._asked - len(self._unseen)) * (1 if self._unseen else 2)
        self._ahead = range(position, position + min(count, most))
        upload, *others = [upload for _, upload in listing.shown()[position : self._ahead.stop]]
        uploads = [upload, *(other for other in others if not self._is_known(other.uuid, now))]
        self._asked, self._unseen, self.shown_until = len(uploads), {each.uuid for each in uploads[1:]}, 0.0
        return uploads

    def _is_known(self, uuid: str, now: float) -> bool:
        look = self.looks.get(uuid)
        return uuid in self.looking or (look is not None and now < look.until)


class UploadListings:
    """What is known of all uploads of a registry, each for `ttl` seconds; bounded.

    `service` has the uploads of a repository. `is_far`: asking for one takes a request to a store.
    """

    def __init__(self, ttl: float, service: Callable[[str], LayerService], *, is_far: bool) -> None:
        self.hits = 0
        self.misses = 0
        self._ttl = ttl
        self._service = service
        self._is_far = is_far
        self._repositories: OrderedDict[str, _Repository] = OrderedDict()

    # --- asking --------------------------------------------------------------------------------------------------

    async def find(self, name: str, file_name: str) -> ListedUpload | None:
        """The upload of repository `name` that is shown under a name."""
        return (await self._listing(name)).find(file_name)

    async def shown(self, name: str) -> list[ListedUpload]:
        """All uploads of repository `name`, in the order of the names that they are shown under, which they have here.

        `info` is what is known of each without asking for it.
        """
        listing = await self._listing(name)
        repository = self._repository(name)
        repository.shown_until = time.monotonic() + self._ttl
        looks = repository.looks
        return [
            replace(upload, file_name=file_name, info=looks[upload.uuid].info if upload.uuid in looks else None)
            for file_name, upload in listing.shown()
        ]

    async def look(self, name: str, uuid: str) -> UploadInfo:
        """An upload as storage has it; far away as it had it at most the time to live ago.

        Raises `LayerUploadUnknown`.
        """
        if not self._is_far:
            return await self.stat(name, uuid)
        asked_at = time.monotonic()
        while True:
            repository = self._repository(name)
            info = repository.fresh_look(uuid, asked_at)
            if info is not None:
                return info
            looking = repository.looking.get(uuid)
            if looking is None:
                return await self._look(name, repository, uuid)
            await looking.wait()

    async def stat(self, name: str, uuid: str) -> UploadInfo:
        """An upload as storage has it now. Raises `LayerUploadUnknown`."""
        try:
            return await self._service(name).stat_upload(uuid)
        except LayerUploadUnknown:
            self.removed(name, uuid)
            raise

    # --- what is done here ---------------------------------------------------------------------------------------

    def began(self, name: str, info: UploadInfo) -> None:
        """There is another upload."""
        upload = ListedUpload(info.uuid, info.file_name, info.started_at, None)
        self._repository(name).change(info.uuid, lambda listing: listing.put(upload))
        self.changed(name, info.uuid, info)

    def renamed(self, name: str, uuid: str, file_name: str) -> None:
        """An upload has another name."""
        self._repository(name).change(uuid, lambda listing: listing.rename(uuid, file_name))

    def removed(self, name: str, uuid: str) -> None:
        """An upload is no more."""
        self._repository(name).change(uuid, lambda listing: listing.remove(uuid))
        self.changed(name, uuid, None)

    def changed(self, name: str, uuid: str, info: UploadInfo | None) -> None:
        """An upload has other bytes; without `info` only storage knows how many."""
        repository = self._repository(name)
        # Who is asking about it now gets an older answer.
        repository.looking.pop(uuid, None)
        if repository.asking is not None:
            repository.asking.changed.add(uuid)
        if info is None:
            repository.looks.pop(uuid, None)
        else:
            now = time.monotonic()
            repository.looks[uuid] = _Look(info, now, self._holds_until(now))

    def forget(self, name: str) -> None:
        """Something was done to the uploads of repository `name`, and only storage knows what has become of it."""
        repository = self._repository(name)
        repository.until = repository.began_at = 0.0
        repository.looks.clear()
        repository.looking.clear()
        if repository.asking is not None:
            repository.asking.is_void = True

    def change_ttl(self, ttl: float) -> None:
        """From now on. What was kept for another time is forgotten."""
        self._ttl = ttl
        for name in list(self._repositories):
            self.forget(name)

    # --- storage -------------------------------------------------------------------------------------------------

    async def _listing(self, name: str) -> UploadListing:
        asked_at = time.monotonic()
        while True:
            repository = self._repository(name)
            listing = repository.fresh_listing(asked_at)
            if listing is not None:
                self.hits += 1
                return listing
            asking = repository.asking
            if asking is None:
                self.misses += 1
                return await self._list(name, repository)
            await asking.ended.wait()
            if asking.error is not None:
                # Without the traceback of who has asked, which would grow.
                raise asking.error.with_traceback(None)

    async def _list(self, name: str, repository: _Repository) -> UploadListing:
        asking = repository.asking = _Asking(time.monotonic())
        try:
            listing = UploadListing(await self._service(name).upload_names())
        except LayerfsError as error:
            asking.error = error
            raise
        finally:
            repository.asking = None
            asking.ended.set()
        # From here on no await: nobody has seen that it has ended.
        for change in asking.changes:
            change(listing)
        if not asking.is_void:
            self._keep(repository, asking, listing)
        return listing

    def _keep(self, repository: _Repository, asking: _Asking, listing: UploadListing) -> None:
        repository.listing, repository.began_at = listing, asking.began_at
        repository.until = self._holds_until(asking.began_at)
        repository.looks = {uuid: look for uuid, look in repository.looks.items() if uuid in listing}
        for upload in listing:
            if upload.info is not None and upload.uuid not in asking.changed:
                repository.looks[upload.uuid] = _Look(upload.info, asking.began_at, repository.until)

    async def _look(self, name: str, repository: _Repository, uuid: str) -> UploadInfo:
        """Asks for an upload, and for those that are likely to be asked for next."""
        uploads = repository.take_ahead(uuid, _MOST_AHEAD if self._ttl else 1)
        uuids = [upload.uuid for upload in uploads] or [uuid]
        asked_at, looking = time.monotonic(), trio.Event()
        repository.looking |= dict.fromkeys(uuids, looking)
        found: Sequence[UploadInfo | DriverError | None] = []
        try:
            service = self._service(name)
            found = await (service.stat_listed(uploads) if uploads else _stat_alone(service, uuid))
        finally:
            # But not what was changed here meanwhile.
            mine = {uuid for uuid in uuids if repository.looking.get(uuid) is looking}
            for each_uuid in mine:
                del repository.looking[each_uuid]
            looking.set()
        until = self._holds_until(asked_at)
        for each_uuid, info in zip(uuids, found, strict=True):
            if each_uuid in mine and isinstance(info, UploadInfo):
                repository.looks[each_uuid] = _Look(info, asked_at, until)
            elif each_uuid in mine and info is None:
                self.removed(name, each_uuid)
        if isinstance(found[0], DriverError):
            raise found[0]
        if found[0] is None:
            raise LayerUploadUnknown(name, uuid)
        return found[0]

    # --- what is kept --------------------------------------------------------------------------------------------

    def _holds_until(self, asked_at: float) -> float:
        """Until when an answer is believed that is there now, and was asked for at `asked_at`."""
        now = time.monotonic()
        # What takes longer to ask for than it is believed would be asked for all the time.
        return now + (max(self._ttl, now - asked_at) if self._ttl else 0.0)

    def _repository(self, name: str) -> _Repository:
        repository = self._repositories.get(name)
        if repository is None:
            repository = self._repositories[name] = _Repository()
            self._make_room()
        self._repositories.move_to_end(name)
        return repository

    def _make_room(self) -> None:
        """Forgets the repositories that were not used for the longest time, but not what somebody waits for."""
        *idle, _ = [name for name, repository in self._repositories.items() if repository.is_idle]
        kept = sum(map(_uploads_in, self._repositories.values()))
        for name in idle:
            if len(self._repositories) <= _REPOSITORIES_KEPT and kept <= _UPLOADS_KEPT:
                return
            kept -= _uploads_in(self._repositories.pop(name))


def _uploads_in(repository: _Repository) -> int:
    return max(len(repository.listing or ()), len(repository.looks))


async def _stat_alone(service: LayerService, uuid: str) -> Sequence[UploadInfo | DriverError | None]:
    """An upload that is in no listing."""
    try:
        return [await service.stat_upload(uuid)]
    except LayerUploadUnknown:
        return [None]
