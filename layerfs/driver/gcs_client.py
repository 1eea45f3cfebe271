"""HTTP with Google Cloud Storage: connections, access tokens, how long a request may take, and when it is made again.

There is one layer of retries, here, which goes on for as long as `patience` says, and every request has a deadline over
all its tries. What is asked for is said by `gcs_bucket`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import math
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import aiohttp
import google.auth
import google.auth.exceptions
import google.auth.transport.requests

from layerfs.driver.body import Body
from layerfs.driver.gcs_errors import CredentialsNotFound, ResponseError, failing, gcs_error
from layerfs.driver.gcs_options import GcsOptions
from layerfs.driver.patience import CONNECT_TIMEOUT, Patience, Tries, seconds_asked_for
from layerfs.driver.trust import trusting
from layerfs.errors import DriverError

#: Where many requests are asked in one.
BATCH: Final = "/batch/storage/v1"

_ENDPOINT: Final = "https://storage.googleapis.com"
_SCOPES: Final = ("https://www.googleapis.com/auth/devstorage.read_write",)

_Result = TypeVar("_Result")

# It warns of credentials that say no project; a bucket does not care.
logging.getLogger("google.auth._default").setLevel(logging.ERROR)


class Client:
    """Connections for a bucket, `connections` of them at the most. Opened by the first request."""

    def __init__(self, options: GcsOptions, *, connections: int) -> None:
        self._options = options
        self._connections = connections
        emulator = os.environ.get("STORAGE_EMULATOR_HOST")
        if emulator and "://" not in emulator:
            emulator = f"http://{emulator}"
        self._endpoint = (options.endpoint_url or emulator or _ENDPOINT).rstrip("/")
        #: When the bucket has last answered, and not by an error; by `time.monotonic`.
        self.answered_at = -math.inf
        self._session: aiohttp.ClientSession | None = None
        self._patience = Patience(options.read_timeout)
        self._tokens = _Tokens(options) if urlsplit(self._endpoint).scheme == "https" else None

    @property
    def description(self) -> str:
        """The bucket and where it is, for messages."""
        return f"bucket {self._options.bucket!r} at {self._endpoint}"

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def ask(self, path: str, request: Callable[[], Awaitable[_Result]], *, length: int = 0) -> _Result:
        """What `request` gives, which is about the object at `path` and made again for as long as it may be.

        `length` is how many bytes it sends or asks for.
        """
        try:
            async with self._patience.request(self._patience.deadline(length)) as tries:
                return await self._try(request, tries)
        except DriverError:
            raise
        except Exception as error:
            raise gcs_error(error, path, store=self.description) from error

    async def _try(self, request: Callable[[], Awaitable[_Result]], tries: Tries) -> _Result:
        has_new_token = False
        while True:
            try:
                return await request()
            except Exception as error:
                is_unauthorized = isinstance(error, ResponseError) and error.status == 401
                if is_unauthorized and self._tokens is not None and not has_new_token:
                    self._tokens.forget()
                    has_new_token = True
                    continue
                pause = tries.pause(
                    failing(error), at_least=error.asks_for if isinstance(error, ResponseError) else 0.0
                )
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def json(
        self,
        method: str,
        url: str,
        query: Mapping[str, str],
        body: bytes | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """What one try of a request answers; empty if it is nothing. Raises as `request` does."""
        async with self.request(method, url, query, body, content_type) as answer:
            content = await answer.read()
        try:
            parsed = json.loads(content) if content else None
        except ValueError:
            raise ResponseError(answer.status, content) from None
        return parsed if isinstance(parsed, dict) else {}

    @contextlib.asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        query: Mapping[str, str],
        body: bytes | None = None,
        content_type: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One try. Raises `ResponseError`, or what the client raises."""
        sent = {"Accept-Encoding": "identity", **(headers or {})}
        if body is not None:
            sent["Content-Type"] = content_type
            sent["Content-Length"] = str(len(body))
        if self._tokens is not None:
            sent["Authorization"] = f"Bearer {await self._tokens.get()}"
        if self._options.user_project is not None:
            query = {**query, "userProject": self._options.user_project}
        async with self._open().request(
            method,
            self._endpoint + url,
            params=query,
            data=None if body is None else Body(body),
            headers=sent,
            allow_redirects=False,
        ) as answer:
            self._patience.answered()
            if answer.status >= 300:
                body_of_error = await answer.content.read(64 << 10)
                raise ResponseError(answer.status, body_of_error, asks_for=seconds_asked_for(answer.headers))
            if url != BATCH:
                self.answered_at = time.monotonic()
            yield answer

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=self._connections, ssl=self._tls_context())
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_TIMEOUT, sock_read=self._options.read_timeout
                ),
                auto_decompress=False,
                trust_env=True,
            )
        return self._session

    def _tls_context(self) -> ssl.SSLContext | bool:
        if not self._options.verify_tls:
            return False
        if self._options.ca_file is None:
            return True
        return trusting(self._options.ca_file, setting="ca_file", source=f"gs://{self._options.bucket}")


class _Tokens:
    """Access tokens, from wherever Google's library finds credentials; renewed in time, by one task at a time."""

    def __init__(self, options: GcsOptions) -> None:
        self._options = options
        self._credentials: Any = None
        # Whoever waits for a silent service is in a thread, which nobody can end before this.
        self._ask = functools.partial(google.auth.transport.requests.Request(), timeout=options.read_timeout)
        self._renewing = asyncio.Lock()

    async def get(self) -> str:
        if not self._is_valid():
            async with self._renewing:
                if not self._is_valid():
                    # Blocking, also where the credentials are in a file: they are exchanged for a token.
                    await asyncio.to_thread(self._renew)
        return str(self._credentials.token)

    def forget(self) -> None:
        """Has the next request get a new one."""
        if self._credentials is not None:
            self._credentials.token = None

    def _is_valid(self) -> bool:
        return self._credentials is not None and bool(self._credentials.valid)

    def _renew(self) -> None:
        """Raises nothing but what Google's library calls its own errors; of other kinds it lets some through."""
        if self._credentials is None:
            try:
                self._credentials = self._find()
            except Exception as error:
                raise CredentialsNotFound(self._place) from error
        try:
            self._credentials.refresh(self._ask)
        except google.auth.exceptions.GoogleAuthError:
            raise
        except Exception as error:
            # It has trusted that what came is an answer of such a service: it can be a page of a proxy.
            raise google.auth.exceptions.TransportError("no token") from error  # type: ignore[no-untyped-call]

    def _find(self) -> Any:
        if self._options.credentials is not None:
            found, _ = google.auth.load_credentials_from_dict(  # type: ignore[no-untyped-call]
                dict(self._options.credentials), scopes=_SCOPES
            )
        elif self._options.credentials_file is not None:
            found, _ = google.auth.load_credentials_from_file(  # type: ignore[no-untyped-call]
                self._options.credentials_file, scopes=_SCOPES
            )
        else:
            found, _ = google.auth.default(scopes=_SCOPES)
        return found

    @property
    def _place(self) -> str:
        """Where credentials are looked for, for messages."""
        if self._options.credentials is not None:
            return "the registry's configuration"
        named = self._options.credentials_file or os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
        return f"{named!r}" if named else "the places where it looks: name a file in GOOGLE_APPLICATION_CREDENTIALS"
