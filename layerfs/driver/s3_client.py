"""The way to a bucket: the SDK's client, made for the first request, how long one may take, and when it is made again.

There is one layer of retries, the SDK's, which goes on for as long as `patience` says, and every request has a deadline
over all its tries. What is asked for is said by `s3_bucket`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import os
from collections.abc import Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore import exceptions

from layerfs.driver.body import Body
from layerfs.driver.patience import CONNECT_TIMEOUT, Patience, current_tries, seconds_asked_for
from layerfs.driver.s3_answers import is_of_store
from layerfs.driver.s3_errors import (
    UploadGone,
    credentials_error,
    error_code,
    failing,
    has_outdated_credentials,
    misconfiguration,
    s3_error,
)
from layerfs.driver.s3_options import S3Options
from layerfs.driver.s3_servers import Peculiarities, peculiarities
from layerfs.driver.store_errors import not_of_store
from layerfs.driver.trust import trusting
from layerfs.errors import BackendFailure, DriverError, PathNotFound, UnknownSource

#: Seconds, for what makes the store copy bytes, or delete many objects, which it does without a word.
_PATIENT_READ_TIMEOUT: Final = 300
_PATIENT_DEADLINE: Final = 900.0
#: By the SDK's methods, S3's names of them.
_PATIENT_OPERATIONS: Final = {
    "complete_multipart_upload": "CompleteMultipartUpload",
    "copy_object": "CopyObject",
    "delete_objects": "DeleteObjects",
    "upload_part_copy": "UploadPartCopy",
}

#: Seconds from one look for other credentials to the next, while those there are are refused.
_RENEWAL_PAUSE: Final = 1.0

#: Key, secret, token, and whatever else the SDK has with them.
_Credentials: TypeAlias = tuple[str | None, ...]

log = logging.getLogger(__name__)


class Refused(BackendFailure):
    """A request that the store did not understand, or would not say what was wrong with it."""


class Client:
    """The SDK's client for a bucket, or the one that has taken its place. `connections` are kept at the most."""

    def __init__(self, options: S3Options, *, connections: int) -> None:
        self._options = options
        self._connections = connections
        #: Where the bucket is; empty until that is known, where only the SDK does.
        self.endpoint = options.endpoint_url or ""
        #: Known from the first answer; an upload is begun, or something is listed, before anything that matters.
        self.peculiarities = Peculiarities()
        #: How often other credentials have been found.
        self.renewals = 0
        self._resources = contextlib.AsyncExitStack()
        self._opening = asyncio.Lock()
        self._client: Any = None
        self._credentials: _Credentials | None = None
        self._next_renewal = 0.0
        self._patience = Patience(options.read_timeout)

    @property
    def description(self) -> str:
        """The bucket and where it is, for messages."""
        return f"bucket {self._options.bucket!r} at {self.endpoint or 'AWS'}"

    @property
    def is_aws(self) -> bool:
        return _is_aws(self.endpoint)

    def deadline(self, length: int) -> float:
        """Seconds that all tries of a request have together that sends or gets `length` bytes."""
        return self._patience.deadline(length)

    async def close(self) -> None:
        self._client = None
        await self._resources.aclose()

    async def ask(self, operation: str, path: str, *, length: int = 0, **parameters: Any) -> Any:
        """What the store answers to one of the SDK's operations, which is about the file at `path`.

        `length` is how many bytes are sent or asked for. Raises `UploadGone` if there is no such open upload any more,
        and `Refused`.
        """
        deadline = _PATIENT_DEADLINE if operation in _PATIENT_OPERATIONS else self._patience.deadline(length)
        try:
            # To begin with it reads files, large ones, and may ask others for credentials.
            async with asyncio.timeout(self._patience.deadline()):
                client = await self._open()
            async with self._patience.request(deadline):
                answer = await self._call(client, operation, parameters)
        except DriverError:
            raise
        except Exception as error:
            failure = s3_error(error, path, store=self.description)
            if "UploadId" in parameters and isinstance(failure, PathNotFound):
                # Ceph has the code of a missing object for this too.
                raise UploadGone(path, f"{self.description} has no such multipart upload any more") from error
            if isinstance(error, exceptions.ClientError) and _is_refusal(error):
                raise Refused(path, failure.detail) from error
            raise failure from error
        self._check(operation, path, answer)
        self.peculiarities = peculiarities(answer["ResponseMetadata"]["HTTPHeaders"])
        return answer

    def _check(self, operation: str, path: str, answer: Any) -> None:
        if is_of_store(operation, answer):
            return
        if "Body" in answer:
            answer["Body"].close()
        raise BackendFailure(path, not_of_store(self.description, answer["ResponseMetadata"]["HTTPStatusCode"]))

    async def _call(self, client: Any, operation: str, parameters: Mapping[str, Any]) -> Any:
        """Asks once; a second time if it was refused for credentials that are others by now."""
        try:
            return await getattr(client, operation)(Bucket=self._options.bucket, **parameters)
        except exceptions.ClientError as error:
            if not has_outdated_credentials(error) or not await self._renew(client):
                raise
        body = parameters.get("Body")
        if isinstance(body, Body):
            body.seek(0)
        return await getattr(self._client, operation)(Bucket=self._options.bucket, **parameters)

    async def _renew(self, client: Any) -> bool:
        """Whether there is a client with other credentials than those of `client`; makes it if they can be found.

        What the SDK has found it keeps as long as the client lasts, unless it knows when that expires. A mount lasts
        longer than keys that somebody writes into the SDK's files every day.
        """
        async with self._opening:
            now = asyncio.get_running_loop().time()
            if client is not self._client or self._options.access_key_id is not None or now < self._next_renewal:
                return client is not self._client
            self._next_renewal = now + _RENEWAL_PAUSE
            try:
                found = await _credentials(AioSession(profile=self._options.profile))
                if found in {None, self._credentials}:
                    return False
                # What is under way with the old client goes on to its end.
                self._client = await self._connect()
                self.renewals += 1
            except (exceptions.BotoCoreError, DriverError, OSError):
                return False
            log.info("%s: uses the credentials that the AWS SDK finds now", self.description)
            return True

    async def _open(self) -> Any:
        if self._client is None:
            async with self._opening:
                if self._client is None:
                    self._client = await self._connect()
        return self._client

    async def _connect(self) -> Any:
        options = self._options
        self._check_trust()
        try:
            session = AioSession(profile=options.profile)
            if options.access_key_id is None:
                await self._find_credentials(session)
            client = await self._create_client(session, options.endpoint_url or "", options.path_style)
            endpoint = client.meta.endpoint_url
            if not options.endpoint_url and not _is_aws(endpoint):
                # Only the SDK knows all the places where an endpoint can be set; and other settings follow from it.
                client = await self._create_client(session, endpoint, options.path_style)
            self._credentials = await _credentials(session) if options.access_key_id is None else None
        except (exceptions.BotoCoreError, OSError, ValueError) as error:
            reason = misconfiguration(error)
            if reason is not None:
                raise UnknownSource(f"s3://{options.bucket}", reason) from error
            raise s3_error(error, "/", store=self.description) from error
        self.endpoint = client.meta.endpoint_url
        client.meta.events.register("needs-retry.s3", self._pause)
        client.meta.events.register("before-call.s3.DeleteObjects", _add_md5)
        for operation in _PATIENT_OPERATIONS.values():
            client.meta.events.register(f"before-call.s3.{operation}", _be_patient)
        return client

    async def _find_credentials(self, session: AioSession) -> None:
        """Has the session look for credentials; what goes wrong with that is told from what does with the endpoint."""
        try:
            await session.get_credentials()
        except (OSError, ValueError) as error:
            raise credentials_error(error, "/", store=self.description) from error

    def _pause(
        self,
        *,
        response: tuple[Any, dict[str, Any]] | None,
        caught_exception: Exception | None,
        **_: Any,
    ) -> float | None:
        """Seconds after which the SDK is to make a request again that it has just made; None if it is not to."""
        answer = response[1] if response is not None else {}
        if response is not None:
            self._patience.answered()
        failed = failing(answer, caught_exception)
        if failed is None:
            return None
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        return current_tries().pause(failed, at_least=seconds_asked_for(headers))

    def _check_trust(self) -> None:
        """Raises `UnknownSource` if the certificates by which the store is to be trusted cannot be read."""
        settings = {"ca_file": self._options.ca_file, "AWS_CA_BUNDLE": os.environ.get("AWS_CA_BUNDLE")}
        setting, ca_file = next(((name, file) for name, file in settings.items() if file), ("", ""))
        if self._options.verify_tls and ca_file:
            trusting(ca_file, setting=setting, source=f"s3://{self._options.bucket}")

    async def _create_client(self, session: AioSession, endpoint: str, path_style: bool | None) -> Any:
        options = self._options
        # Few stores but AWS have a host name for each bucket.
        style = {None: "auto" if _is_aws(endpoint) else "path", True: "path", False: "virtual"}[path_style]
        config = AioConfig(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=options.read_timeout,
            # Its own rule counts tries, and the failures of all requests together; `_pause` is the one that holds.
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=self._connections,
            s3={"addressing_style": style, "use_accelerate_endpoint": options.accelerate, **_payload_signing(endpoint)},
            use_dualstack_endpoint=options.dual_stack or None,
            use_fips_endpoint=options.fips or None,
            # By TLS the SDK would send sums after the content, framed in a way that other stores take for content.
            request_checksum_calculation=None if _is_aws(endpoint) else "when_required",
            # Only AWS sends one, and only of whole objects.
            response_checksum_validation="when_required",
        )
        return await self._resources.enter_async_context(
            session.create_client(
                "s3",
                region_name=options.region,
                endpoint_url=options.endpoint_url,
                verify=(options.ca_file or None) if options.verify_tls else False,
                aws_access_key_id=options.access_key_id,
                aws_secret_access_key=options.secret_access_key,
                aws_session_token=options.session_token,
                config=config,
            )
        )


async def _credentials(session: AioSession) -> _Credentials | None:
    """Those that the SDK finds; None if there are none."""
    found = await session.get_credentials()
    return tuple(await found.get_frozen_credentials()) if found is not None else None


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    """Some stores (Swift, old ones of all kinds) insist on this sum, which the SDK replaces with another one."""
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


def _be_patient(context: dict[str, Any], **_: Any) -> None:
    context["read_timeout"] = _PATIENT_READ_TIMEOUT


def _payload_signing(endpoint: str) -> dict[str, bool]:
    """Without TLS all that is sent is signed, so that the store notices if it arrives as something else."""
    return {} if _is_aws(endpoint) else {"payload_signing_enabled": endpoint.startswith("http://")}


def _is_aws(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return not endpoint or host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _is_refusal(error: exceptions.ClientError) -> bool:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status == 400 and error_code(error) in {"400", "InvalidRequest", "InvalidDigest", "MalformedXML"}
