"""What an error of Azure's SDK means for whoever asked: the one table from Azure's codes to `DriverError`s.

By code and type, never by the text of a message; a HEAD has a code too, in a header. What is the same for all stores
is in `store_errors`.
"""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
from azure.core import exceptions

from layerfs.driver.patience import Failing, failing_by_status
from layerfs.driver.store_errors import BY_STATUS, UNKNOWN, Meaning, Network, answered
from layerfs.errors import (
    AccessDenied,
    BackendFailure,
    ContentChanged,
    ContentTooLarge,
    DriverError,
    PathNotFound,
    ShortRead,
    StorageReadOnly,
    UnknownSource,
    UnsupportedByDriver,
)

# What Azure answers where `azure_container` knows more to do than to fail; none of these means anything outside of it.


class OtherKind(BackendFailure):
    """A blob of another kind is in the way."""


class CopyPending(ContentChanged):
    """Another copy to the same place is under way."""


class SourceUnreadable(AccessDenied):
    """The store may not read what it is to copy."""


_NO_CONTAINER: Final = "there is no such container"
_LEASED: Final = "somebody else has a lease on it"

#: Codes with a meaning of their own, beyond what their status says.
_BY_CODE: Final[dict[str, Meaning]] = {
    "AuthenticationFailed": (
        AccessDenied,
        "the key or token does not fit the account, the token has expired, or the clock is wrong",
    ),
    "AuthorizationPermissionMismatch": (
        AccessDenied,
        "a role such as Storage Blob Data Contributor is missing, or a permission of the SAS token",
    ),
    "AuthorizationResourceTypeMismatch": (AccessDenied, "the SAS token is not for containers and blobs"),
    "AuthorizationServiceMismatch": (AccessDenied, "the SAS token is not for blobs"),
    "AuthorizationFailure": (
        AccessDenied,
        "the key does not fit, the token has expired, or the account's firewall or policies refuse it",
    ),
    "KeyBasedAuthenticationNotPermitted": (AccessDenied, "the account takes no keys: leave them out, and log in"),
    "InvalidAuthenticationInfo": (AccessDenied, ""),
    "AccountIsDisabled": (AccessDenied, "the account is disabled"),
    "BlobImmutableDueToPolicy": (StorageReadOnly, "an immutability policy keeps it as it is"),
    "ContainerNotFound": (UnknownSource, _NO_CONTAINER),
    "ContainerBeingDeleted": (UnknownSource, "the container is being deleted"),
    "ContainerDisabled": (UnknownSource, "the container is disabled"),
    "BlobNotFound": (PathNotFound, ""),
    "BlobAlreadyExists": (ContentChanged, "somebody else has begun it"),
    "BlockCountExceedsLimit": (ContentTooLarge, "an append blob takes no more than 50,000 blocks"),
    "MaxBlobSizeConditionNotMet": (ContentTooLarge, ""),
    "InvalidRange": (ShortRead, ""),
    "LeaseIdMissing": (ContentChanged, _LEASED),
    "LeaseIdMismatchWithBlobOperation": (ContentChanged, _LEASED),
    "BlobArchived": (BackendFailure, "it is in the archive tier: rehydrate it first"),
    "BlobBeingRehydrated": (BackendFailure, "it is being brought back from the archive tier"),
    "FeatureVersionMismatch": (UnsupportedByDriver, ""),
    "InvalidBlobType": (OtherKind, ""),
    "PendingCopyOperation": (CopyPending, ""),
    "CannotVerifyCopySource": (SourceUnreadable, ""),
}

_NETWORK: Final = Network(
    timeouts=(
        TimeoutError,
        asyncio.TimeoutError,
        exceptions.ServiceRequestTimeoutError,
        exceptions.ServiceResponseTimeoutError,
    ),
    errors=(exceptions.AzureError, aiohttp.ClientError, OSError),
    trust_advice="say ca_file=…, or set SSL_CERT_FILE",
)


def azure_error(error: BaseException, path: str, *, store: str) -> DriverError:
    """The error to raise in place of `error`, which a request for `path` met; `store` is the container and endpoint."""
    # What finds no credentials, or none that work, is an error of HTTP to the SDK, though there was no request.
    if isinstance(error, exceptions.HttpResponseError) and error.status_code:
        return _response_error(error, path, store)
    if isinstance(error, exceptions.ClientAuthenticationError):
        kind = type(error).__name__
        return AccessDenied(path, f"{store}: Azure's SDK finds no credentials that it could use ({kind})")
    return _NETWORK.error(error, path, store=store)


def failing(failure: BaseException | int) -> Failing:
    """For how long a try fails that had no answer, or one with a status with which the SDK would try again."""
    if isinstance(failure, exceptions.ClientAuthenticationError):
        return Failing.FOR_GOOD
    if isinstance(failure, exceptions.HttpResponseError) and failure.status_code:
        failure = failure.status_code
    if isinstance(failure, int):
        by_status = failing_by_status(failure)
        return Failing.PERHAPS if by_status is Failing.FOR_GOOD else by_status
    return _NETWORK.failing(failure)


def _response_error(error: exceptions.HttpResponseError, path: str, store: str) -> DriverError:
    code, status = _error_code(error), error.status_code or 0
    meaning = _BY_CODE.get(code) or BY_STATUS.get(status) or UNKNOWN
    return answered(f"{status} {code}".rstrip(), meaning, path, store=store)


def _error_code(error: exceptions.HttpResponseError) -> str:
    """Azure's code of an error; empty if there is none."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")
