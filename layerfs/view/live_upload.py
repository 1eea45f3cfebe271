"""A live upload: one that this mount has touched, with the hash of what it has written, and who has it open here.

It outlives its handles, so that finishing it need not read it again. At most one of them writes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

import trio

from layerfs.digest import Digest
from layerfs.errors import LayerfsError, LayerUploadBusy
from layerfs.layername import LayerName
from layerfs.registry import LayerUpload, UploadInfo
from layerfs.registry.paths import UPLOADS


class OpenUpload(Protocol):
    """What is known here of who has an upload open."""

    #: The last descriptor is closed; storage may still have to do with it.
    is_leaving: bool

    async def hold(self) -> None:
        """Opens what is in storage, before it is removed: where files outlive their names it can be read on."""


class LiveUpload:
    """An upload that this mount has written to, or is about to finish."""

    def __init__(self, upload: LayerUpload, file_name: str) -> None:
        self.upload = upload
        self.file_name = file_name
        #: Where it is in the tree.
        self.path = f"{upload.name}/{UPLOADS}/{file_name}"
        #: Set for a file that was created at its digest: what it must hold, and what makes it so when it is closed.
        self.expected: LayerName | None = None
        self.commit: Callable[[], Awaitable[None]] | None = None
        self.writer: OpenUpload | None = None
        self.writer_gone = trio.Event()
        #: Who has it open for reading only.
        self.readers: set[OpenUpload] = set()
        self.storing = False
        #: Set when the finish that is under way is over.
        self.finishing: trio.Event | None = None
        #: Why the last thing that failed did; shown as `user.layerfs.error`.
        self.error = ""
        #: The canonical digest of the blob that it has become.
        self.finished: Digest | None = None
        #: Whether its content was handed to somebody: nothing more can be written.
        self.is_consumed = False
        self.modified_at = time.time_ns()

    @property
    def is_being_written(self) -> bool:
        """Whether the newest of it is here. Not after its writer has failed: then it is what storage has."""
        return self.writer is not None and self.upload.is_usable

    @property
    def is_over(self) -> bool:
        """Whether it is finished, or its content has gone elsewhere."""
        return self.is_consumed or self.finished is not None

    @property
    def info(self) -> UploadInfo:
        """The upload as storage has it, if all of it is there."""
        upload = self.upload
        return UploadInfo(upload.name, upload.uuid, self.file_name, upload.started_at, upload.size, self.modified_at)

    async def store(self) -> None:
        """Stores what a writer is ahead of storage. If that fails, so does everything else on this upload later."""
        try:
            await self.upload.store()
        except LayerfsError as error:
            self.error = str(error)
        finally:
            self.storing = False

    @contextlib.contextmanager
    def being_finished(self) -> Iterator[None]:
        """Lets nobody else finish the upload, or open it for writing, in the body. Raises `LayerUploadBusy`."""
        if self.writer is not None and not (self.upload.is_flushed and self.upload.is_usable):
            raise self.busy(f"{self.file_name!r} is open for writing and not all of it is in storage yet")
        self.check_not_finishing()
        self.finishing = trio.Event()
        try:
            yield
        except LayerfsError as error:
            self.error = str(error)
            raise
        finally:
            self.finishing.set()
            self.finishing = None

    def check_not_finishing(self) -> None:
        """Raises `LayerUploadBusy`."""
        if self.finishing is not None:
            raise self.busy("it is being finished")

    def busy(self, reason: str) -> LayerUploadBusy:
        """The error for who wants what only one can have."""
        return LayerUploadBusy(self.upload.name, self.upload.uuid, reason)
