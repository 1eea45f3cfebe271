"""What an error of the AWS SDK means for whoever asked: the one table from S3's codes to `DriverError`s.

By code and type, never by the text of a message; a HEAD has no code but its status. What is told names the endpoint and
the bucket, never credentials: neither S3's messages nor the SDK's are repeated where they could hold some.
"""

from __future__ import annotations

import asyncio
import errno
from typing import Final

import aiohttp
from botocore import exceptions

from layerfs.driver.network_reasons import network_reason
from layerfs.errors import (
    AccessDenied,
    BackendFailure,
    ContentChanged,
    DriverError,
    PathNotFound,
    ShortRead,
    StorageFull,
    TooManyOpenFiles,
    UnknownSource,
    UnsupportedByDriver,
)

_EXPIRED: Final = "the credentials have expired; renew them where the AWS SDK finds them"

#: Codes with a meaning of their own, beyond what their status says.
_BY_CODE: Final[dict[str, tuple[type[DriverError], str]]] = {
    "ExpiredToken": (AccessDenied, _EXPIRED),
    "ExpiredTokenException": (AccessDenied, _EXPIRED),
    "TokenRefreshRequired": (AccessDenied, _EXPIRED),
    "RequestExpired": (AccessDenied, _EXPIRED),
    "InvalidAccessKeyId": (AccessDenied, "the store does not know this access key"),
    "InvalidToken": (AccessDenied, "the session token is not valid"),
    "SignatureDoesNotMatch": (AccessDenied, "the secret key does not belong to the access key"),
    "RequestTimeTooSkewed": (AccessDenied, "the clock of this machine differs too much from that of the store"),
    "AuthorizationHeaderMalformed": (AccessDenied, "signed for another region; say region=… or set AWS_REGION"),
    "NoSuchKey": (PathNotFound, ""),
    "NoSuchBucket": (UnknownSource, "there is no such bucket"),
    "InvalidPart": (ContentChanged, "a part of the multipart upload was replaced by somebody else"),
    "InvalidPartOrder": (ContentChanged, "a part of the multipart upload was replaced by somebody else"),
    "PreconditionFailed": (ContentChanged, ""),
    "InvalidRange": (ShortRead, ""),
    "QuotaExceeded": (StorageFull, "the quota is used up"),
    "InsufficientCapacity": (StorageFull, ""),
    "XMinioStorageFull": (StorageFull, ""),
    "NotImplemented": (UnsupportedByDriver, ""),
    "MethodNotAllowed": (UnsupportedByDriver, ""),
}

_BY_STATUS: Final[dict[int, tuple[type[DriverError], str]]] = {
    401: (AccessDenied, ""),
    403: (AccessDenied, ""),
    404: (PathNotFound, ""),
    405: (UnsupportedByDriver, ""),
    412: (ContentChanged, ""),
    416: (ShortRead, ""),
    429: (BackendFailure, "it asks for fewer requests"),
    501: (UnsupportedByDriver, ""),
    503: (BackendFailure, "it is overloaded or asks for fewer requests"),
    507: (StorageFull, ""),
}

_NO_CREDENTIALS: Final = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.ProfileNotFound,
    exceptions.TokenRetrievalError,
    exceptions.SSOError,
    exceptions.MetadataRetrievalError,
)


class UploadGone(ContentChanged):
    """A multipart upload that was completed or aborted by somebody else."""


def s3_error(error: BaseException, path: str, *, store: str) -> DriverError:
    """The error to raise in place of `error`, which a request for `path` met; `store` is the bucket and endpoint."""
    if isinstance(error, exceptions.ClientError):
        return _client_error(error, path, store)
    if isinstance(error, _NO_CREDENTIALS):
        kind = type(error).__name__
        return AccessDenied(path, f"{store}: the AWS SDK finds no credentials that it could use ({kind})")
    if (number := _errno(error)) in {errno.EMFILE, errno.ENFILE}:
        return TooManyOpenFiles(path, f"no connection to {store} can be made")
    if isinstance(error, asyncio.TimeoutError | exceptions.ReadTimeoutError | exceptions.ConnectTimeoutError):
        return BackendFailure(path, f"{store} does not answer in time")
    if isinstance(error, exceptions.SSLError):
        return BackendFailure(path, f"no trusted TLS connection to {store} (say ca_file=…, or set AWS_CA_BUNDLE)")
    if isinstance(error, exceptions.ConnectionError | exceptions.HTTPClientError | aiohttp.ClientError | OSError):
        reason = network_reason(number) if number else type(error).__name__
        return BackendFailure(path, f"{store} cannot be reached, or broke the connection ({reason})")
    return BackendFailure(path, f"{store}: {type(error).__name__}")


def misconfiguration(error: Exception) -> str | None:
    """What is wrong with the settings from which no client could be made; None if it is not the settings."""
    if isinstance(error, exceptions.ProfileNotFound):
        return f"the AWS SDK knows no profile {error.kwargs.get('profile')!r}"
    if isinstance(error, exceptions.InvalidRegionError):
        return f"{error.kwargs.get('region_name')!r} cannot be the name of a region"
    if isinstance(error, ValueError):
        # Its text may have a secret in it. That of a URL of ours was looked at before.
        return (
            "the endpoint in AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or the SDK's configuration is no URL: "
            "expected http://HOST[:PORT] or https://HOST[:PORT]"
        )
    return None


def error_code(error: exceptions.ClientError) -> str:
    """S3's code of an error; the status, where there is no body that could have one."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _client_error(error: exceptions.ClientError, path: str, store: str) -> DriverError:
    code = error_code(error)
    metadata = error.response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    kind, reason = _BY_CODE.get(code) or _BY_STATUS.get(status) or (BackendFailure, "")
    if kind is PathNotFound:
        return PathNotFound(path)
    attempts = int(metadata.get("RetryAttempts", 0)) + 1
    tried = f", tried {attempts} times" if attempts > 1 else ""
    answer = code if code == str(status) or not code else f"{status} {code}"
    detail = f"{store} answered {answer or status}{tried}"
    return kind(path, f"{detail}: {reason}" if reason else detail)


def _errno(error: BaseException) -> int | None:
    """The number of the system's error at the bottom of what the libraries have wrapped around it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno:
            return seen.errno
        inner = getattr(seen, "kwargs", {}).get("error")
        seen = inner if isinstance(inner, BaseException) else seen.__cause__ or seen.__context__
    return None
