"""Who may open an upload: anybody for reading, one at a time for writing."""

from __future__ import annotations

import os
from typing import Final

import trio

from layerfs.view.live_upload import LiveUpload
from layerfs.view.live_uploads import LiveUploads
from layerfs.view.upload_handle import UploadHandle

#: Seconds that opening for writing waits for a handle that was flushed and may be closed already: the kernel tells of
#: the last close (RELEASE) only after `close` has returned.
_RELEASE_GRACE: Final = 0.25

#: Seconds for letting go of a file that was opened in vain, or for a moment only.
CLOSE_DEADLINE: Final = 10.0


async def open_upload(uploads: LiveUploads, name: str, uuid: str, file_name: str, flags: int) -> UploadHandle:
    """Opens an upload. Raises `LayerUploadBusy` if it is to be written and somebody else is writing it."""
    if flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC:
        live = await uploads.revived(name, uuid, file_name)
        handle = UploadHandle(uploads, live, flags)
        live.readers.add(handle)
        return handle
    uploads.state.check_writable()
    # Again after waiting: it may be finished or cancelled by then.
    while (live := await uploads.revived(name, uuid, file_name)).writer is not None:
        await _wait_for_release(live)
    live.check_not_finishing()
    uploads.check_room()
    return await _open_for_writing(uploads, live, flags)


def open_begun(uploads: LiveUploads, live: LiveUpload, flags: int) -> UploadHandle:
    """Opens an upload that was just begun, for who has begun it."""
    handle = live.writer = UploadHandle(uploads, live, flags)
    uploads.began(live)
    return handle


async def _open_for_writing(uploads: LiveUploads, live: LiveUpload, flags: int) -> UploadHandle:
    name, uuid = live.upload.name, live.upload.uuid
    handle = UploadHandle(uploads, live, flags)
    live.writer, live.writer_gone = handle, trio.Event()
    try:
        if not live.upload.is_usable:
            live.upload = await uploads.resume(name, uuid)
        await live.upload.open_writer()
        if flags & os.O_TRUNC:
            await live.upload.truncate(0)
    except BaseException:
        uploads.writer_closed(live)
        if live.finishing is not None:
            raise  # that lets go of the file
        uploads.drop(name, uuid)
        with trio.move_on_after(CLOSE_DEADLINE, shield=True):
            await live.upload.close()
        raise
    live.error = ""
    _start_hashing(uploads, live)
    return handle


async def _wait_for_release(live: LiveUpload) -> None:
    writer = live.writer
    if live.upload.is_flushed:
        with trio.move_on_after(_RELEASE_GRACE):
            await live.writer_gone.wait()
    if live.writer is not None:
        reason = "another program has it open for writing" if live.writer is writer else "another program was faster"
        raise live.busy(f"{live.file_name!r}: {reason}")


def _start_hashing(uploads: LiveUploads, live: LiveUpload) -> None:
    # Where random writes are possible storage is near, and reading what was there before costs little.
    near = uploads.state.registry.driver.capabilities.random_writes
    if near and live.upload.hash_lag > 0:
        uploads.state.start(live.upload.hash_stored, f"hashing what upload {live.upload.uuid} had before")
