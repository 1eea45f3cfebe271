"""The way to a container: the SDK's client, made for the first request, whom it is for, and how long one may take.

There is one layer of retries, the SDK's, which goes on for as long as `patience` says, and every request has a deadline
over all its tries. What is asked for is said by `azure_container`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from azure.core.exceptions import AzureError, HttpResponseError
from azure.storage.blob.aio import BlobServiceClient, ContainerClient, ExponentialRetry

from layerfs.driver.azure_errors import azure_error, failing
from layerfs.driver.azure_options import AzureOptions
from layerfs.driver.extras import missing_extra
from layerfs.driver.patience import CONNECT_TIMEOUT, Patience, current_tries, seconds_asked_for
from layerfs.driver.store_errors import is_page, not_of_store
from layerfs.driver.trust import trusting
from layerfs.driver.url_options import MEBIBYTE
from layerfs.errors import BackendFailure, DriverError, UnknownSource

#: Of a request: more than there is ever time for.
_MOST_TRIES: Final = 1000

#: A status that Azure's own servers do not use, but what stands before them may.
_TOO_MANY_REQUESTS: Final = 429

#: Bytes above which the SDK would make several requests of one; no read here is larger.
_LARGEST_GET: Final = 256 * MEBIBYTE

_Result = TypeVar("_Result")


class _NotOfStore(Exception):
    """An answer that means success, but is of something on the way to the store."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _OtherRange(Exception):
    """An answer with other bytes of a blob than those that were asked for; the SDK does not look."""

    def __init__(self, wanted: str, sent: str) -> None:
        super().__init__(wanted, sent)
        self.wanted = wanted
        self.sent = sent


class Client:
    """The SDK's client for a container."""

    def __init__(self, options: AzureOptions) -> None:
        self._options = options
        #: Where the account is; empty until that is known.
        self.endpoint = options.endpoint_url or ""
        #: Whether requests are made in the name of a user, and not by a key or token of the account.
        self.is_logged_in = False
        self._resources = contextlib.AsyncExitStack()
        self._opening = asyncio.Lock()
        self._service: BlobServiceClient | None = None
        self._client: ContainerClient | None = None
        self._patience = Patience(options.read_timeout)

    @property
    def description(self) -> str:
        """The container and where it is, for messages."""
        return f"container {self._options.container!r} at {self.endpoint or 'Azure'}"

    @property
    def service(self) -> BlobServiceClient:
        """The SDK's client for the account; there is one when something was asked for."""
        assert self._service is not None  # noqa: S101
        return self._service

    @property
    def has_sums(self) -> bool:
        """Whether what is sent has its MD5 with it: without TLS nothing else would tell the store that it arrived as
        something else. It costs more CPU than all the rest of an upload."""
        return self.endpoint.startswith("http://")

    async def close(self) -> None:
        self._client = self._service = None
        await self._resources.aclose()

    async def ask(
        self, path: str, request: Callable[[ContainerClient], Awaitable[_Result]], *, length: int = 0
    ) -> _Result:
        """What `request` gives, which is about the blob at `path`, and sends or asks for `length` bytes."""
        try:
            async with self._patience.request(self._patience.deadline(length)):
                return await request(await self._open())
        except DriverError:
            raise
        except Exception as error:
            if isinstance(error, _NotOfStore):
                raise BackendFailure(path, not_of_store(self.description, error.status)) from error
            if isinstance(error, _OtherRange):
                reason = f"{self.description} was asked for {error.wanted!r} and sent {error.sent!r}"
                raise BackendFailure(path, reason) from error
            raise azure_error(error, path, store=self.description) from error

    async def _open(self) -> ContainerClient:
        if self._client is None:
            async with self._opening:
                if self._client is None:
                    self._client = await self._connect()
        return self._client

    async def _connect(self) -> ContainerClient:
        try:
            service = await self._resources.enter_async_context(await self._create_service())
        except ValueError as error:
            # Its text may have the secret in it.
            reason = "the connection string, key or token in the environment is malformed"
            raise UnknownSource(f"az://{self._options.container}", reason) from error
        self._service = service
        address = urlsplit(service.primary_endpoint)
        self.endpoint = f"{address.scheme}://{address.netloc}{address.path.rstrip('/')}"
        return service.get_container_client(self._options.container)

    async def _create_service(self) -> BlobServiceClient:
        options, environment = self._options, os.environ
        if options.verify_tls and options.ca_file is not None:
            trusting(options.ca_file, setting="ca_file", source=f"az://{options.container}")
        settings: dict[str, Any] = {
            "retry_policy": _Retries(),
            "raw_response_hook": self._look_at,
            "connection_timeout": CONNECT_TIMEOUT,
            "read_timeout": options.read_timeout,
            "connection_verify": (options.ca_file or True) if options.verify_tls else False,
            "max_single_get_size": _LARGEST_GET,
            "max_chunk_get_size": _LARGEST_GET,
            "connection_data_block_size": MEBIBYTE,
        }
        connection = options.connection_string
        if connection is None and options.account is None and options.endpoint_url is None:
            connection = environment.get("AZURE_STORAGE_CONNECTION_STRING")
        if connection:
            # A file that it was read from ends in a newline, which the SDK would take for one more setting.
            return BlobServiceClient.from_connection_string(connection.strip(), **settings)
        account = (
            options.account or environment.get("AZURE_STORAGE_ACCOUNT") or environment.get("AZURE_STORAGE_ACCOUNT_NAME")
        )
        if not account:
            raise UnknownSource(
                f"az://{options.container}",
                "of which account? Say az://…?account=NAME, or set AZURE_STORAGE_ACCOUNT or "
                "AZURE_STORAGE_CONNECTION_STRING",
            )
        endpoint = options.endpoint_url or f"https://{account}.blob.{options.realm}"
        credential = await self._credential(account)
        if self.is_logged_in and endpoint.startswith("http://"):
            raise UnknownSource(
                f"az://{options.container}",
                f"the token of a login is not sent to {endpoint} without TLS: say https://, or give a key in "
                "AZURE_STORAGE_KEY",
            )
        return BlobServiceClient(endpoint, credential=credential, **settings)

    def _look_at(self, answer: Any) -> None:
        """Of every answer, before the SDK's rule for trying again is asked about it."""
        self._patience.answered()
        if answer.http_response.status_code == _TOO_MANY_REQUESTS:
            # To that rule this is an answer like others; that there is an error it is always asked about.
            raise HttpResponseError(response=answer.http_response)
        status = answer.http_response.status_code
        if status < 300 and is_page(status, answer.http_response.headers, request_id="x-ms-request-id"):
            answer.http_response.internal_response.close()
            raise _NotOfStore(status)
        wanted, sent = _ranges(answer)
        # Caches on the way have mixed ranges up, and what has the right length would be taken for the right bytes.
        if sent and wanted.partition("-")[0].replace("=", " ") != sent.partition("-")[0]:
            answer.http_response.internal_response.close()
            raise _OtherRange(wanted, sent)

    async def _credential(self, account: str) -> Any:
        options, environment = self._options, os.environ
        if options.tenant_id and options.client_id and options.client_secret:
            self.is_logged_in = True
            principal = _identity().ClientSecretCredential(options.tenant_id, options.client_id, options.client_secret)
            return await self._resources.enter_async_context(principal)
        key = (
            self._options.account_key
            or environment.get("AZURE_STORAGE_KEY")
            or environment.get("AZURE_STORAGE_ACCOUNT_KEY")
        )
        if key:
            # With the name: it cannot be told from every endpoint.
            return {"account_name": account, "account_key": key}
        token = self._options.sas_token or environment.get("AZURE_STORAGE_SAS_TOKEN")
        if token:
            return token.removeprefix("?")
        self.is_logged_in = True
        return await self._resources.enter_async_context(_identity().DefaultAzureCredential())


def _identity() -> Any:
    """The SDK's logins. Not imported before they are needed: it takes half a second. Raises `UnknownSource`."""
    try:
        import azure.identity.aio
    except ImportError as error:
        raise missing_extra("az", "azure", error) from error
    return azure.identity.aio


def _ranges(answer: Any) -> tuple[str, str]:
    """The range that was asked for, and the one that was sent; empty where there is none."""
    response = answer.http_response
    sent = response.headers.get("content-range", "") if response.status_code == HTTPStatus.PARTIAL_CONTENT else ""
    return answer.http_request.headers.get("x-ms-range", ""), sent


class _Retries(ExponentialRetry):
    """The SDK's, for as long as `patience` says, and with its pauses: the SDK's begin with 15 seconds."""

    def __init__(self) -> None:
        super().__init__(
            retry_total=_MOST_TRIES, retry_connect=_MOST_TRIES, retry_read=_MOST_TRIES, retry_status=_MOST_TRIES
        )

    def increment(
        self, settings: dict[str, Any], request: Any, response: Any = None, error: AzureError | None = None
    ) -> bool:
        """Whether there is to be another try."""
        answer = response if error is None else getattr(error, "response", None)
        failed = failing(response.status_code if error is None else error)
        at_least = seconds_asked_for(answer.headers) if answer is not None else 0.0
        settings["pause"] = current_tries().pause(failed, at_least=at_least)
        return settings["pause"] is not None and super().increment(settings, request, response, error)

    def get_backoff_time(self, settings: dict[str, Any]) -> float:
        pause: float = settings["pause"]
        return pause
