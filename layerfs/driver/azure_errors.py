"""What an error of Azure's SDK means for whoever asked: the one table from Azure's codes to `DriverError`s.

By code and type, never by the text of a message; a HEAD has a code too, in a header. What is told names the endpoint
and the container, never a key or a token: neither Azure's messages nor the SDK's are repeated, and no URL is.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from typing import Final

import aiohttp
from azure.core import exceptions

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
    UnknownSource,
    UnsupportedByDriver,
)

_NO_CONTAINER: Final = "there is no such container"
_LEASED: Final = "somebody else has a lease on it"

#: Codes with a meaning of their own, beyond what their status says.
_BY_CODE: Final[dict[str, tuple[type[DriverError], str]]] = {
    "AuthenticationFailed": (AccessDenied, "the key or token does not fit the account, or the clock is wrong"),
    "AuthorizationPermissionMismatch": (AccessDenied, "a role such as Storage Blob Data Contributor is missing"),
    "AuthorizationResourceTypeMismatch": (AccessDenied, "the SAS token is not for containers and blobs"),
    "AuthorizationServiceMismatch": (AccessDenied, "the SAS token is not for blobs"),
    "AuthorizationFailure": (AccessDenied, "the key does not fit, or the account's firewall or policies refuse it"),
    "KeyBasedAuthenticationNotPermitted": (AccessDenied, "the account takes no keys: leave them out, and log in"),
    "InvalidAuthenticationInfo": (AccessDenied, ""),
    "AccountIsDisabled": (AccessDenied, "the account is disabled"),
    "BlobImmutableDueToPolicy": (StorageReadOnly, "an immutability policy keeps it as it is"),
    "ContainerNotFound": (UnknownSource, _NO_CONTAINER),
    "ContainerBeingDeleted": (UnknownSource, "the container is being deleted"),
    "ContainerDisabled": (UnknownSource, "the container is disabled"),
    "BlobNotFound": (PathNotFound, ""),
    "BlockCountExceedsLimit": (ContentTooLarge, "an append blob takes no more than 50,000 blocks"),
    "MaxBlobSizeConditionNotMet": (ContentTooLarge, ""),
    "InvalidRange": (ShortRead, ""),
    "LeaseIdMissing": (ContentChanged, _LEASED),
    "LeaseIdMismatchWithBlobOperation": (ContentChanged, _LEASED),
    "BlobArchived": (BackendFailure, "it is in the archive tier: rehydrate it first"),
    "BlobBeingRehydrated": (BackendFailure, "it is being brought back from the archive tier"),
    "FeatureVersionMismatch": (UnsupportedByDriver, ""),
}

_BY_STATUS: Final[dict[int, tuple[type[DriverError], str]]] = {
    401: (AccessDenied, ""),
    403: (AccessDenied, ""),
    404: (PathNotFound, ""),
    405: (UnsupportedByDriver, ""),
    412: (ContentChanged, ""),
    413: (ContentTooLarge, ""),
    416: (ShortRead, ""),
    429: (BackendFailure, "it asks for fewer requests"),
    501: (UnsupportedByDriver, ""),
    503: (BackendFailure, "it is overloaded or asks for fewer requests"),
    507: (StorageFull, ""),
}

_TIMEOUTS: Final = (
    TimeoutError,
    asyncio.TimeoutError,
    exceptions.ServiceRequestTimeoutError,
    exceptions.ServiceResponseTimeoutError,
)


def azure_error(error: BaseException, path: str, *, store: str) -> DriverError:
    """The error to raise in place of `error`, which a request for `path` met; `store` is the container and endpoint."""
    # What finds no credentials, or none that work, is an error of HTTP to the SDK, though there was no request.
    if isinstance(error, exceptions.HttpResponseError) and error.status_code:
        return _response_error(error, path, store)
    if isinstance(error, exceptions.ClientAuthenticationError):
        kind = type(error).__name__
        return AccessDenied(path, f"{store}: Azure's SDK finds no credentials that it could use ({kind})")
    causes = list(_causes(error))
    if any(isinstance(cause, OSError) and cause.errno in {errno.EMFILE, errno.ENFILE} for cause in causes):
        return TooManyOpenFiles(path, f"no connection to {store} can be made")
    if any(isinstance(cause, _TIMEOUTS) for cause in causes):
        return BackendFailure(path, f"{store} does not answer in time")
    if any(isinstance(cause, aiohttp.ClientSSLError | aiohttp.ClientConnectorCertificateError) for cause in causes):
        return BackendFailure(path, f"no trusted TLS connection to {store} (say ca_file=…, or set SSL_CERT_FILE)")
    if any(isinstance(cause, exceptions.AzureError | aiohttp.ClientError | OSError) for cause in causes):
        numbers = [cause.errno for cause in causes if isinstance(cause, OSError) and cause.errno]
        reason = network_reason(numbers[-1]) if numbers else type(causes[-1]).__name__
        return BackendFailure(path, f"{store} cannot be reached, or broke the connection ({reason})")
    return BackendFailure(path, f"{store}: {type(error).__name__}")


def error_code(error: BaseException) -> str:
    """Azure's code of an error; empty if there is none."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")


def _response_error(error: exceptions.HttpResponseError, path: str, store: str) -> DriverError:
    code = error_code(error)
    status = error.status_code or 0
    kind, reason = _BY_CODE.get(code) or _BY_STATUS.get(status) or (BackendFailure, "")
    if kind is PathNotFound:
        return PathNotFound(path)
    detail = f"{store} answered {status} {code}".rstrip()
    return kind(path, f"{detail}: {reason}" if reason else detail)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was made of by the libraries, the innermost last."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        inner = getattr(seen, "inner_exception", None)
        seen = inner if isinstance(inner, BaseException) and inner is not seen else seen.__cause__ or seen.__context__
