"""What goes wrong between here and Google Cloud Storage: the one table from its reasons to `DriverError`s.

By reason, status and type, never by the text of a message. What is told names the endpoint and the bucket, never a
token: no message of the service is repeated, and no URL is.
"""

from __future__ import annotations

import asyncio
import errno
import json
from typing import Final

import aiohttp
from google.auth import exceptions

from layerfs.driver.network_reasons import network_reason
from layerfs.errors import (
    AccessDenied,
    BackendFailure,
    ContentChanged,
    ContentTooLarge,
    DriverError,
    PathNotFound,
    ShortRead,
    StorageFull,
    StorageReadOnly,
    TooManyOpenFiles,
    UnsupportedByDriver,
)

_TOO_MANY: Final = "it asks for fewer requests"

#: Reasons with a meaning of their own, beyond what their status says.
_BY_REASON: Final[dict[str, tuple[type[DriverError], str]]] = {
    "rateLimitExceeded": (BackendFailure, _TOO_MANY),
    "userRateLimitExceeded": (BackendFailure, _TOO_MANY),
    "quotaExceeded": (StorageFull, "the quota is used up"),
    "accountDisabled": (AccessDenied, "the account is disabled"),
    "retentionPolicyNotMet": (StorageReadOnly, "a retention policy keeps it as it is"),
    "objectUnderActiveHold": (StorageReadOnly, "a hold keeps it as it is"),
    "userProjectMissing": (AccessDenied, "the requester pays for this bucket: say user_project=…"),
}

_BY_STATUS: Final[dict[int, tuple[type[DriverError], str]]] = {
    401: (AccessDenied, "the credentials are not valid, or have expired"),
    403: (AccessDenied, "a role such as Storage Object User on the bucket is missing"),
    404: (PathNotFound, ""),
    405: (UnsupportedByDriver, ""),
    412: (ContentChanged, ""),
    413: (ContentTooLarge, ""),
    416: (ShortRead, ""),
    429: (BackendFailure, _TOO_MANY),
    501: (UnsupportedByDriver, ""),
    503: (BackendFailure, "it is overloaded or asks for fewer requests"),
}

#: What may be otherwise a moment later.
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})


class ResponseError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status}")
        self.status = status
        self.reason = _reason(body)


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, ResponseError):
        return error.status in _PASSING or error.reason in {"rateLimitExceeded", "userRateLimitExceeded"}
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.InvalidURL):
        return False
    return isinstance(error, aiohttp.ClientError | TimeoutError | OSError)


def gcs_error(error: BaseException, path: str, *, store: str) -> DriverError:
    """The error to raise in place of `error`, which a request for `path` met; `store` is the bucket and endpoint."""
    if isinstance(error, ResponseError):
        return _response_error(error, path, store)
    if isinstance(error, exceptions.GoogleAuthError):
        kind = type(error).__name__
        return AccessDenied(path, f"{store}: Google's library finds no credentials that it could use ({kind})")
    number = error.errno if isinstance(error, OSError) else None
    if number in {errno.EMFILE, errno.ENFILE}:
        return TooManyOpenFiles(path, f"no connection to {store} can be made")
    if isinstance(error, asyncio.TimeoutError | TimeoutError):
        return BackendFailure(path, f"{store} does not answer in time")
    if isinstance(error, aiohttp.ClientSSLError):
        return BackendFailure(path, f"no trusted TLS connection to {store} (say ca_file=…, or set SSL_CERT_FILE)")
    if isinstance(error, aiohttp.ClientError | OSError):
        reason = network_reason(number) if number else type(error).__name__
        return BackendFailure(path, f"{store} cannot be reached, or broke the connection ({reason})")
    return BackendFailure(path, f"{store}: {type(error).__name__}")


def _response_error(error: ResponseError, path: str, store: str) -> DriverError:
    kind, reason = _BY_REASON.get(error.reason) or _BY_STATUS.get(error.status) or (BackendFailure, "")
    if kind is PathNotFound:
        return PathNotFound(path)
    detail = f"{store} answered {error.status} {error.reason}".rstrip()
    return kind(path, f"{detail}: {reason}" if reason else detail)


def _reason(body: bytes) -> str:
    """The reason in the body of an error, in one word; empty if there is none."""
    try:
        reason = json.loads(body)["error"]["errors"][0]["reason"]
    except (ValueError, LookupError, TypeError):
        return ""
    return reason if isinstance(reason, str) and reason.isalnum() and len(reason) < 50 else ""
