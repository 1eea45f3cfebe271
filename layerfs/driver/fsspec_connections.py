"""The connections to a server that fsspec reaches: one for all threads, or, where a library cannot have that, several.

Those that nobody uses at the moment are kept. One that failed in a way that it may not have survived is not used again;
nor is one that the server has closed meanwhile, for which it is looked at before it is used after a pause.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Concatenate, Final, ParamSpec, TypeVar

from layerfs.driver.fsspec_protocols import store_for
from layerfs.driver.fsspec_store import Store
from layerfs.errors import AccessDenied, BackendFailure, DriverError

#: Seconds without use after which a connection may be gone.
_IDLE: Final = 5.0

#: Answers, after which a connection is as good as before.
_ANSWERS: Final = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


class Stores:
    """What lies below `url`. Raises what `store_for` does."""

    def __init__(self, url: str) -> None:
        self._url = url
        #: To be asked what it is; and used by those that `is_shared`.
        self.first = store_for(url)
        self.is_shared = self.first.is_shared
        self._lock = threading.Lock()
        self._is_closed = False
        # Those that nobody uses, with when they were used last; that is the last of them.
        self._idle = [(self.first, time.monotonic())]

    def reading(self, operation: Callable[Concatenate[Store, _Parameters], _Result]) -> Callable[_Parameters, _Result]:
        """`operation`, which changes nothing, as something to call in any thread.

        It is called again, on a new connection, if one that had been used before fails.
        """

        def call(*arguments: _Parameters.args, **keywords: _Parameters.kwargs) -> _Result:
            store, is_new = self._take()
            try:
                return self._use(store, operation, *arguments, **keywords)
            except Exception as error:
                if is_new or _is_answer(error):
                    raise
            return self._use(store_for(self._url), operation, *arguments, **keywords)

        return call

    def changing(self, operation: Callable[Concatenate[Store, _Parameters], _Result]) -> Callable[_Parameters, _Result]:
        """`operation` as something to call in any thread. It is called once, because it may have been done in part."""

        def call(*arguments: _Parameters.args, **keywords: _Parameters.kwargs) -> _Result:
            store, _ = self._take()
            return self._use(store, operation, *arguments, **keywords)

        return call

    def _use(
        self,
        store: Store,
        operation: Callable[Concatenate[Store, _Parameters], _Result],
        *arguments: _Parameters.args,
        **keywords: _Parameters.kwargs,
    ) -> _Result:
        """What `operation` returns with `store`, which is nobody else's meanwhile, and others' then, if it is well."""
        is_well = False
        try:
            result = operation(store, *arguments, **keywords)
            is_well = True
        except Exception as error:  # noqa: BLE001 - it is raised again, or what it means
            meaning = store.meaning(error) or error
            is_well = _is_answer(meaning)
            raise meaning from (None if meaning is error else error)
        finally:
            self._give_back(store, is_well=is_well)
        return result

    def close(self) -> None:
        """Closes what nobody uses, and the rest when it is given back. May be called again."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for store, _ in idle:
            store.close()

    def _take(self) -> tuple[Store, bool]:
        """A store for one thread, and whether it is a new one."""
        if self.is_shared:
            return self.first, True
        while (found := self._pop()) is not None:
            store, used_at = found
            if time.monotonic() - used_at < _IDLE:
                return store, False
            try:
                store.check_alive()
            except Exception:  # noqa: BLE001 - whatever it is, another one is made
                store.close()
            else:
                return store, False
        return store_for(self._url), True

    def _pop(self) -> tuple[Store, float] | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _give_back(self, store: Store, *, is_well: bool) -> None:
        if self.is_shared:
            return
        with self._lock:
            if is_well and not self._is_closed:
                self._idle.append((store, time.monotonic()))
                return
        store.close()


def _is_answer(error: Exception) -> bool:
    # That access is denied is what some servers say to a connection whose login they have forgotten.
    if isinstance(error, AccessDenied | BackendFailure):
        return False
    return isinstance(error, (DriverError, *_ANSWERS))
