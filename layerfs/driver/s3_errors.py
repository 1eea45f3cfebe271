"""What an error of the AWS SDK means for whoever asked: the one table from S3's codes to `DriverError`s.

By code and type, never by the text of a message; a HEAD has no code but its status. What is the same for all stores
is in `store_errors`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
from botocore import exceptions

from layerfs.driver.patience import Failing, failing_by_status
from layerfs.driver.store_errors import BY_STATUS, UNKNOWN, Meaning, Network, answered
from layerfs.errors import (
    AccessDenied,
    ContentChanged,
    DriverError,
    PathNotFound,
    ShortRead,
    StorageFull,
    UnknownSource,
    UnsupportedByDriver,
)

_EXPIRED: Final = "the credentials have expired; renew them where the AWS SDK finds them"

_ELSEWHERE: Final = "the bucket is in another region, or at another endpoint; say region=… or endpoint_url=…"

#: Of credentials that may have been replaced where the SDK finds them, which it does once. Swift says of a key that it
#: does not know that the signature is wrong; and elsewhere a key can have got another secret.
_OUTDATED: Final = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)

#: Codes with a meaning of their own, beyond what their status says.
_BY_CODE: Final[dict[str, Meaning]] = {
    "ExpiredToken": (AccessDenied, _EXPIRED),
    "ExpiredTokenException": (AccessDenied, _EXPIRED),
    "TokenRefreshRequired": (AccessDenied, _EXPIRED),
    "RequestExpired": (AccessDenied, _EXPIRED),
    "InvalidAccessKeyId": (AccessDenied, "the store does not know this access key"),
    "InvalidToken": (AccessDenied, "the session token is not valid"),
    "SignatureDoesNotMatch": (AccessDenied, "the secret key does not belong to the access key"),
    "RequestTimeTooSkewed": (AccessDenied, "the clock of this machine differs too much from that of the store"),
    "AuthorizationHeaderMalformed": (AccessDenied, "signed for another region; say region=… or set AWS_REGION"),
    "PermanentRedirect": (UnknownSource, _ELSEWHERE),
    "301": (UnknownSource, _ELSEWHERE),
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

#: Codes that say more than their status of how long a request will fail.
_FAILING: Final[dict[str, Failing]] = {
    "PriorRequestNotComplete": Failing.FOR_NOW,
    "RequestLimitExceeded": Failing.FOR_NOW,
    "RequestThrottled": Failing.FOR_NOW,
    "RequestThrottledException": Failing.FOR_NOW,
    "RequestTimeout": Failing.PERHAPS,
    "SlowDown": Failing.FOR_NOW,
    "Throttling": Failing.FOR_NOW,
    "ThrottlingException": Failing.FOR_NOW,
    "TooManyRequests": Failing.FOR_NOW,
}

_NETWORK: Final = Network(
    timeouts=(TimeoutError, asyncio.TimeoutError, exceptions.ReadTimeoutError, exceptions.ConnectTimeoutError),
    errors=(exceptions.ConnectionError, exceptions.HTTPClientError, aiohttp.ClientError, OSError),
    trust_advice="say ca_file=…, or set AWS_CA_BUNDLE",
)

_NO_CREDENTIALS: Final = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.ProfileNotFound,
    exceptions.TokenRetrievalError,
    exceptions.SSOError,
    exceptions.MetadataRetrievalError,
    # What `credential_process` names answered with something else.
    json.JSONDecodeError,
)

#: Settings that the SDK does not take. Their texts have names and words of its files, no secrets.
_UNUSABLE_SETTINGS: Final = (
    exceptions.InfiniteLoopConfigError,
    exceptions.InvalidChecksumConfigError,
    exceptions.InvalidConfigError,
    exceptions.InvalidDefaultsMode,
)


class UploadGone(ContentChanged):
    """A multipart upload that was completed or aborted by somebody else."""


def s3_error(error: BaseException, path: str, *, store: str) -> DriverError:
    """The error to raise in place of `error`, which a request for `path` met; `store` is the bucket and endpoint."""
    if isinstance(error, exceptions.ClientError):
        return _client_error(error, path, store)
    if isinstance(error, _NO_CREDENTIALS):
        return _no_credentials(path, store, type(error).__name__)
    if isinstance(error, OSError) and error.filename is not None:
        # No connection has one: it is where credentials are to be, or the program that gives them.
        return _no_credentials(path, store, f"{error.strerror}: {error.filename!r}")
    if isinstance(error, RecursionError):
        # The SDK asks where the bucket is, and is sent elsewhere for that too.
        return UnknownSource(path, f"{store}: {_ELSEWHERE}")
    return _NETWORK.error(error, path, store=store)


def credentials_error(error: Exception, path: str, *, store: str) -> DriverError:
    """As `s3_error`, of what was met while the SDK looked for credentials."""
    if isinstance(error, ValueError):
        return _no_credentials(path, store, type(error).__name__)
    return s3_error(error, path, store=store)


def _no_credentials(path: str, store: str, reason: str) -> AccessDenied:
    return AccessDenied(path, f"{store}: the AWS SDK finds no credentials that it could use ({reason})")


def has_outdated_credentials(error: exceptions.ClientError) -> bool:
    """Whether it would not have been met with credentials that are newer."""
    return error_code(error) in _OUTDATED


def failing(answer: Mapping[str, Any] | None, error: BaseException | None) -> Failing | None:
    """For how long a try fails that had this `answer`, as the SDK parses it, or this `error`; None if it does not."""
    if error is not None:
        return _NETWORK.failing(error)
    code, status = _code_and_status(answer or {})
    if code in _FAILING:
        return _FAILING[code]
    return failing_by_status(status) if status >= 400 else None


def misconfiguration(error: Exception) -> str | None:
    """What is wrong with the settings from which no client could be made; None if it is not the settings."""
    if isinstance(error, exceptions.ProfileNotFound):
        return f"the AWS SDK knows no profile {error.kwargs.get('profile')!r}"
    if isinstance(error, exceptions.ConfigParseError):
        return _unparsable(error)
    if isinstance(error, _UNUSABLE_SETTINGS):
        return f"the AWS SDK cannot use its configuration: {error}"
    if isinstance(error, exceptions.InvalidRegionError):
        return f"{error.kwargs.get('region_name')!r} cannot be the name of a region"
    if isinstance(error, ValueError):
        # Its text may have a secret in it. That of a URL of ours was looked at before.
        return (
            "the endpoint in AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or the SDK's configuration is no URL: "
            "expected http://HOST[:PORT] or https://HOST[:PORT]"
        )
    return None


def _unparsable(error: exceptions.ConfigParseError) -> str:
    """Which file, and where in it; what stands there may be a secret."""
    cause = error.kwargs.get("error")
    lines = [number for number, _ in getattr(cause, "errors", [])] or [getattr(cause, "lineno", None)]
    place = f", line {lines[0]}" if lines[0] is not None else ""
    return f"the AWS SDK cannot read {error.kwargs.get('path')!r}{place}: expected [PROFILE], and below it NAME = VALUE"


def error_code(error: exceptions.ClientError) -> str:
    """S3's code of an error; the status, where there is no body that could have one."""
    return _code_and_status(error.response)[0]


def _client_error(error: exceptions.ClientError, path: str, store: str) -> DriverError:
    code, status = _code_and_status(error.response)
    attempts = int(error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)) + 1
    tried = f", tried {attempts} times" if attempts > 1 else ""
    answer = code if code == str(status) or not code else f"{status} {code}"
    meaning = _BY_CODE.get(code) or BY_STATUS.get(status) or UNKNOWN
    return answered(f"{answer or status}{tried}", meaning, path, store=store)


def _code_and_status(answer: Mapping[str, Any]) -> tuple[str, int]:
    code = answer.get("Error", {}).get("Code", "")
    return str(code), int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
