"""What an `OSError` from a backend means: the one table, for the kernel's errors and for those of fsspec.

By number where there is one. Most of fsspec's own errors have none, so then by type; never by the text of a message.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from layerfs.errors import (
    AccessDenied,
    BackendFailure,
    ContentTooLarge,
    DriverError,
    InvalidPath,
    NotRegularFile,
    PathNotEmpty,
    PathNotFound,
    StorageFull,
    StorageReadOnly,
    TooManyOpenFiles,
    UnsupportedByDriver,
)

_BY_NUMBER: Final[dict[int, type[DriverError]]] = {
    errno.ENOENT: PathNotFound,
    errno.ENOTDIR: PathNotFound,
    # A file stands where a directory should be made; nothing else here asks for what must not exist.
    errno.EEXIST: PathNotFound,
    errno.EACCES: AccessDenied,
    errno.EPERM: AccessDenied,
    errno.EROFS: StorageReadOnly,
    errno.ENOSPC: StorageFull,
    errno.EDQUOT: StorageFull,
    errno.EMFILE: TooManyOpenFiles,
    errno.ENFILE: TooManyOpenFiles,
    errno.ELOOP: NotRegularFile,
    errno.ENXIO: NotRegularFile,
    errno.EISDIR: NotRegularFile,
    errno.ENOTEMPTY: PathNotEmpty,
    errno.ENAMETOOLONG: InvalidPath,
    errno.EFBIG: ContentTooLarge,
    errno.EXDEV: UnsupportedByDriver,
}

_BY_TYPE: Final[tuple[tuple[type[OSError], type[DriverError]], ...]] = (
    (FileNotFoundError, PathNotFound),
    (NotADirectoryError, PathNotFound),
    (FileExistsError, PathNotFound),
    (IsADirectoryError, NotRegularFile),
    (PermissionError, AccessDenied),
)


def driver_error(error: OSError, path: str) -> DriverError:
    """The error to raise in place of `error`, which an operation on `path` met."""
    if isinstance(error, socket.gaierror):
        # Its number is none of an errno.
        return BackendFailure(path, "the host name cannot be resolved")
    if error.errno is not None:
        detail = "a symbolic link" if error.errno == errno.ELOOP else os.strerror(error.errno)
        return _BY_NUMBER.get(error.errno, BackendFailure)(path, detail)
    for kind, meaning in _BY_TYPE:
        if isinstance(error, kind):
            return meaning(path)
    return BackendFailure(path, f"{type(error).__name__}: {error}"[:300])


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turns every `OSError` out of the block into the `DriverError` it means."""
    try:
        yield
    except OSError as error:
        raise driver_error(error, path) from error
