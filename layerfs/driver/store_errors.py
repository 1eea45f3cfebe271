"""What the errors of all object stores have in common: what a status means, and what can happen on the way to a store.

Each store has a table of its own beside this (`s3_errors`, `azure_errors`, `gcs_errors`), of its codes and its library.
What is told names the endpoint and the bucket, never credentials: messages of stores and libraries are not repeated.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, TypeAlias

from layerfs.driver.patience import Failing
from layerfs.errors import (
    AccessDenied,
    BackendFailure,
    ContentChanged,
    ContentTooLarge,
    DriverError,
    PathNotFound,
    ShortRead,
    StorageFull,
    TooManyOpenFiles,
    UnsupportedByDriver,
)

#: An error, and the reason to tell beside what the store has answered, if there is more to tell.
Meaning: TypeAlias = tuple[type[DriverError], str]

ASKS_FOR_FEWER: Final = "it asks for fewer requests"

#: What answers mean whose code has no meaning of its own.
BY_STATUS: Final[dict[int, Meaning]] = {
    401: (AccessDenied, ""),
    403: (AccessDenied, ""),
    404: (PathNotFound, ""),
    405: (UnsupportedByDriver, ""),
    412: (ContentChanged, ""),
    413: (ContentTooLarge, ""),
    416: (ShortRead, ""),
    429: (BackendFailure, ASKS_FOR_FEWER),
    501: (UnsupportedByDriver, ""),
    503: (BackendFailure, "it is overloaded or asks for fewer requests"),
    507: (StorageFull, ""),
}

UNKNOWN: Final[Meaning] = (BackendFailure, "")

_NO_FILES_LEFT: Final = frozenset({errno.EMFILE, errno.ENFILE})

#: Of TLS all else can be a proxy before a store that is away, which has an answer of its own.
_UNTRUSTED: Final = (ssl.SSLCertVerificationError,)

#: Numbers of getaddrinfo(3), which are negative, and so never those of an errno.
_NO_SUCH_NAME: Final = frozenset({socket.EAI_NONAME, socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_NODATA})


def answered(answer: str, meaning: Meaning, path: str, *, store: str) -> DriverError:
    """The error for an `answer` that `store`, the bucket and endpoint, gave to a request for `path`."""
    kind, reason = meaning
    if kind is PathNotFound:
        return PathNotFound(path)
    detail = f"{store} answered {answer}"
    return kind(path, f"{detail}: {reason}" if reason else detail)


def is_page(status: int, headers: Mapping[str, str], *, request_id: str) -> bool:
    """Whether an answer is a page of something on the way to a store, and not the store's, which numbers its answers in
    the header `request_id`: some call their own HTML, too. An answer that never has content (204) is no page."""
    return status != HTTPStatus.NO_CONTENT and "html" in headers.get("content-type", "") and request_id not in headers


def not_of_store(store: str, status: int) -> str:
    """What to tell of an answer that means success, but is a page of a proxy, say, which answers so to everything."""
    return f"{store} answered {status}, but not as a store does: what it said is of something else on the way there"


@dataclass(frozen=True, slots=True)
class Network:
    """What a library raises where there was no answer."""

    timeouts: tuple[type[BaseException], ...]
    #: All that has to do with the network, those included.
    errors: tuple[type[BaseException], ...]
    #: How to have other certificates trusted.
    trust_advice: str

    def error(self, error: BaseException, path: str, *, store: str) -> DriverError:
        """The error to raise in place of `error`, which a request for `path` met."""
        causes = list(_causes(error))
        numbers = _numbers(causes)
        if _NO_FILES_LEFT.intersection(numbers):
            return TooManyOpenFiles(path, f"no connection to {store} can be made")
        if _has(causes, self.timeouts):
            return BackendFailure(path, f"{store} does not answer in time")
        if _has(causes, _UNTRUSTED):
            return BackendFailure(path, f"no trusted TLS connection to {store} ({self.trust_advice})")
        if _has(causes, self.errors):
            return BackendFailure(path, f"{store} cannot be reached, or broke the connection ({_reason(causes)})")
        return BackendFailure(path, f"{store}: {type(error).__name__}")

    def failing(self, error: BaseException) -> Failing:
        """For how long, as far as `error` tells."""
        causes = list(_causes(error))
        if _has(causes, _UNTRUSTED) or not _has(causes, self.timeouts + self.errors):
            return Failing.FOR_GOOD
        return Failing.PERHAPS if _NO_FILES_LEFT.intersection(_numbers(causes)) else Failing.FOR_NOW


def _numbers(causes: list[BaseException]) -> list[int]:
    """The numbers of the system's errors among them."""
    return [cause.errno for cause in causes if isinstance(cause, OSError) and cause.errno]


def _has(causes: list[BaseException], kinds: tuple[type[BaseException], ...]) -> bool:
    return any(isinstance(cause, kinds) for cause in causes)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was made of by the libraries, the innermost last."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        # Azure's SDK has it in the one place, AWS's in the other.
        inner = getattr(seen, "inner_exception", None) or getattr(seen, "kwargs", {}).get("error")
        seen = inner if isinstance(inner, BaseException) and inner is not seen else seen.__cause__ or seen.__context__


def _reason(causes: list[BaseException]) -> str:
    """What happened to a connection, in a word: the name of an errno, as a rule."""
    innermost = causes[-1]
    if isinstance(innermost, ssl.SSLError):
        # Its number is none of an errno.
        return f"TLS: {innermost.reason or type(innermost).__name__}"
    numbers = _numbers(causes)
    if not numbers:
        return type(innermost).__name__
    if numbers[-1] in _NO_SUCH_NAME:
        return "its host name cannot be resolved"
    return errno.errorcode.get(numbers[-1], str(numbers[-1]))
