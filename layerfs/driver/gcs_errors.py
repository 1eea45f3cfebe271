"""What goes wrong between here and Google Cloud Storage: the one table from its reasons to `DriverError`s.

By reason, status and type, never by the text of a message. What is the same for all stores is in `store_errors`.
"""

from __future__ import annotations

import asyncio
import json
from typing import Final

import aiohttp
from google.auth import exceptions

from layerfs.driver.patience import Failing, failing_by_status
from layerfs.driver.store_errors import ASKS_FOR_FEWER, BY_STATUS, UNKNOWN, Meaning, Network, answered, not_of_store
from layerfs.errors import AccessDenied, BackendFailure, DriverError, StorageFull, StorageReadOnly

#: Reasons with a meaning of their own, beyond what their status says.
_BY_REASON: Final[dict[str, Meaning]] = {
    "rateLimitExceeded": (BackendFailure, ASKS_FOR_FEWER),
    "userRateLimitExceeded": (BackendFailure, ASKS_FOR_FEWER),
    "quotaExceeded": (StorageFull, "the quota is used up"),
    "accountDisabled": (AccessDenied, "the account is disabled"),
    "retentionPolicyNotMet": (StorageReadOnly, "a retention policy keeps it as it is"),
    "objectUnderActiveHold": (StorageReadOnly, "a hold keeps it as it is"),
    "userProjectMissing": (AccessDenied, "the requester pays for this bucket: say user_project=…"),
}

_BY_STATUS: Final[dict[int, Meaning]] = BY_STATUS | {
    401: (AccessDenied, "the credentials are not valid, or have expired"),
    403: (AccessDenied, "a role such as Storage Object User on the bucket is missing"),
}

#: Reasons that come with a status of something else.
_TOO_MANY: Final = frozenset({"rateLimitExceeded", "userRateLimitExceeded"})

_NETWORK: Final = Network(
    timeouts=(TimeoutError, asyncio.TimeoutError),
    errors=(aiohttp.ClientError, OSError),
    trust_advice="say ca_file=…, or set SSL_CERT_FILE",
)


class ResponseError(Exception):
    """An answer that is an error, and the seconds that it asks to wait."""

    def __init__(self, status: int, body: bytes, *, asks_for: float = 0.0) -> None:
        super().__init__(f"{status}")
        self.status = status
        self.asks_for = asks_for
        self.reason = _reason(body)


class StoredOtherBytes(Exception):
    """What the store has made of what it was sent has another size or checksum."""


class CredentialsNotFound(exceptions.DefaultCredentialsError):
    """There are none at `place`, or none that Google's library understands."""

    def __init__(self, place: str) -> None:
        super().__init__(place)  # type: ignore[no-untyped-call]
        self.place = place


def failing(error: BaseException) -> Failing:
    """For how long a try fails."""
    if isinstance(error, ResponseError):
        return Failing.FOR_NOW if error.reason in _TOO_MANY else failing_by_status(error.status)
    if isinstance(error, StoredOtherBytes):
        return Failing.PERHAPS
    if isinstance(error, exceptions.GoogleAuthError):
        return Failing.FOR_NOW if _is_away(error) else Failing.FOR_GOOD
    return Failing.FOR_GOOD if isinstance(error, aiohttp.InvalidURL) else _NETWORK.failing(error)


def gcs_error(error: BaseException, path: str, *, store: str) -> DriverError:
    """The error to raise in place of `error`, which a request for `path` met; `store` is the bucket and endpoint."""
    if isinstance(error, ResponseError):
        return _response_error(error, path, store)
    if isinstance(error, StoredOtherBytes):
        return BackendFailure(path, f"{store} has stored other bytes than it was sent")
    if isinstance(error, exceptions.GoogleAuthError):
        return _credentials_error(error, path, store)
    return _NETWORK.error(error, path, store=store)


def _credentials_error(error: exceptions.GoogleAuthError, path: str, store: str) -> DriverError:
    kind = type(error).__name__
    if _is_away(error):
        reason = f"the service that gives out access tokens cannot be reached, or does not answer as one ({kind})"
        return BackendFailure(path, f"{store}: {reason}")
    if isinstance(error, CredentialsNotFound):
        return AccessDenied(path, f"{store}: Google's library finds no credentials that it could use in {error.place}")
    return AccessDenied(path, f"{store}: Google's library finds no credentials that it could use ({kind})")


def _is_away(error: exceptions.GoogleAuthError) -> bool:
    """Whether credentials were not refused: there was nobody to look at them, or nobody who had time."""
    # For the machine's own service account the library says of both that a token could not be had.
    causes = (error, error.__cause__)
    return bool(error.retryable) or any(isinstance(cause, exceptions.TransportError) for cause in causes)


def _response_error(error: ResponseError, path: str, store: str) -> DriverError:
    if error.status < 300:
        return BackendFailure(path, not_of_store(store, error.status))
    meaning = _BY_REASON.get(error.reason) or _BY_STATUS.get(error.status) or UNKNOWN
    return answered(f"{error.status} {error.reason}".rstrip(), meaning, path, store=store)


def _reason(body: bytes) -> str:
    """The reason in the body of an error, in one word; empty if there is none."""
    try:
        reason = json.loads(body)["error"]["errors"][0]["reason"]
    except (ValueError, LookupError, TypeError):
        return ""
    return reason if isinstance(reason, str) and reason.isalnum() and len(reason) < 50 else ""
