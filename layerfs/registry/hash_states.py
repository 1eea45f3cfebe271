"""The hash states of an upload that are in storage, as `hashing` has them, for whoever goes on with it.

A registry believes a state whose number is the size of the upload without looking at its bytes. So none may be there
that is of other bytes:

* one is stored only of all bytes that are stored, and after these are durable;
* all are deleted before any byte but at the end is changed;
* those that others have left for more bytes than there are go before the first byte is added, whenever a writer begins:
  a registry that dies between a state and its bytes leaves a file that nobody has changed.

Those of others are not believed here unless the operator says so: registries do leave states that are not of the
first n bytes.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

from layerfs.driver.interface import StorageDriver
from layerfs.errors import DriverError, PathNotFound
from layerfs.registry.hashing import STATE_LENGTH, StreamingHash, resume_hash
from layerfs.registry.lost_tail import note_durable
from layerfs.registry.paths import UploadDirectory

_log = logging.getLogger(__name__)


class HashStates:
    """The states of one upload. `trusted`: those that are found are believed. `may_exist`: it is not a new upload."""

    def __init__(self, driver: StorageDriver, directory: UploadDirectory, *, trusted: bool, may_exist: bool) -> None:
        self._driver = driver
        self._directory = directory
        self._trusted = trusted
        self._may_exist = may_exist
        # The number of the newest state that was stored here, if it is of what is there now.
        self._stored_count = 0

    async def find(self, size: int) -> StreamingHash | None:
        """The hash of all `size` bytes that are stored, by a state that may be believed; None without one."""
        if not self._trusted:
            return None
        try:
            content = await self._driver.get_content(self._directory.hash_state(size), limit=STATE_LENGTH)
        except DriverError:
            return None
        found = resume_hash(content)
        return found if found is not None and found.count == size else None

    async def store(self, size: int, state: bytes | None) -> None:
        """Stores the state of all `size` bytes, which must be durable; where there is none, how many these are.

        Storage that refuses is no error: without a state the bytes are as safe.
        """
        if self._stored_count == size:
            return
        try:
            if state is None:
                await note_durable(self._driver, self._directory, size)
                return
            # Before, because it may be there also if storing it is cancelled or fails.
            self._may_exist = True
            await self._driver.put_content(self._directory.hash_state(size), state)
            self._stored_count = size
        except DriverError as error:
            # A missing state only costs time.
            _log.info("no hash state for upload %s at %d bytes: %s", self._directory.uuid, size, error)

    def forget_stored(self) -> None:
        """What was stored here may be wrong: the next state is stored though there be one of that size."""
        self._stored_count = 0

    def expect_others(self) -> None:
        """Somebody else has written the bytes, and states."""
        self._may_exist = True
        self._stored_count = 0

    async def delete_all(self) -> None:
        """To be called before bytes are changed that states are of."""
        if self._may_exist:
            with contextlib.suppress(PathNotFound):
                await self._driver.delete(self._directory.hash_states)
            self._may_exist = False
        self._stored_count = 0

    async def delete_ahead_of(self, size: int, names: Sequence[str]) -> None:
        """To be called before anything is written behind `size` bytes, with the `names` that were just found.

        Registries store a state before the data: what a crash leaves would be wrong for other bytes to come.
        """
        self._may_exist = self._may_exist or bool(names)
        if any(not _is_count_up_to(size, name) for name in names):
            await self.delete_all()


def _is_count_up_to(size: int, name: str) -> bool:
    """Whether `name` is a number, written as registries write it, of at most `size`."""
    return name.isdecimal() and str(int(name)) == name and int(name) <= size
