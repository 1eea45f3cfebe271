"""Azurite, Microsoft's own emulator of Azure's blob storage, with all its data in memory: one for the whole session.

It is strict where the driver rests on Azure: positions and ETags of appends, kinds of blobs, conditions of copies.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from azure.storage.blob import BlobServiceClient, ContainerClient

from harness.fixture import free_port
from harness.http_proxy import Answer
from harness.relay import Call, Fault, Relay
from layerfs.driver.azure_options import AzureOptions

ACCOUNT: Final = "devstoreaccount1"
#: The same on every Azurite in the world.
KEY: Final = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
CONTAINER: Final = "registry"

START_LIMIT: Final = 60

#: Where scripts/setup --test puts it.
_INSTALLED: Final = Path(__file__).parents[2] / ".venv/azurite/node_modules/azurite/dist/src/blob/main.js"

#: Every ten minutes it looks for content that no blob has any more, and answers nobody meanwhile: after ten thousand
#: writes for more than a minute. So it is told to wait as long as Node.js can, 25 days.
_COLLECTS_NO_GARBAGE: Final = """\
const constants = require({constants});
if (!constants.DEFAULT_GC_INTERVAL_MS) throw Error("this version has another name for when it collects garbage");
constants.DEFAULT_GC_INTERVAL_MS = 2 ** 31 - 1;
"""


class Azurite:
    """The emulator's blob service, with one account and one container."""

    def __init__(self, *, certificate: tuple[Path, Path] | None = None) -> None:
        """With a certificate it speaks TLS, and takes tokens of logins too, whoever has signed them."""
        self._certificate = certificate
        self.directory = Path(tempfile.mkdtemp(prefix="layerfs-azurite-"))
        self.port = free_port()
        assert _INSTALLED.exists(), f"{_INSTALLED} is missing: run scripts/setup --test"
        environment = os.environ | {"PATH": f"{_INSTALLED.parents[6] / 'bin'}:{os.environ['PATH']}"}
        if certificate is not None:
            # It reads a source that is signed for as anybody does, from itself.
            environment["NODE_EXTRA_CA_CERTS"] = str(certificate[0])
        constants = json.dumps(str(_INSTALLED.parent / "utils/constants.js"))
        changes = self.directory / "changes.js"
        changes.write_text(_COLLECTS_NO_GARBAGE.format(constants=constants))
        with (self.directory / "out").open("wb") as out:
            self._process = subprocess.Popen(
                [
                    # Also when the tests are killed nothing of it stays.
                    *("setpriv", "--pdeathsig", "KILL", "node", "--require", str(changes), str(_INSTALLED)),
                    *("--blobHost", "127.0.0.1", "--blobPort", str(self.port)),
                    *("--inMemoryPersistence", "--extentMemoryLimit", "8192"),
                    *("--silent", "--skipApiVersionCheck", "--disableTelemetry"),
                    *self._secured(),
                ],
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._wait()
        self.client.create_container()

    def _secured(self) -> list[str]:
        if self._certificate is None:
            return []
        certificate, key = map(str, self._certificate)
        return ["--oauth", "basic", "--cert", certificate, "--key", key]

    @property
    def endpoint(self) -> str:
        protocol = "http" if self._certificate is None else "https"
        return f"{protocol}://127.0.0.1:{self.port}/{ACCOUNT}"

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in its environment to use it."""
        return {"AZURE_STORAGE_CONNECTION_STRING": self.connection_string()}

    def connection_string(self, endpoint: str | None = None) -> str:
        where = endpoint or self.endpoint
        protocol = where.partition(":")[0]
        return f"DefaultEndpointsProtocol={protocol};AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={where};"

    @functools.cached_property
    def client(self) -> ContainerClient:
        """A client of the SDK, to look at what is stored without any code of ours."""
        trusted = True if self._certificate is None else str(self._certificate[0])
        service = BlobServiceClient.from_connection_string(self.connection_string(), connection_verify=trusted)
        return service.get_container_client(CONTAINER)

    def options(self, prefix: str, **more: Any) -> AzureOptions:
        """The options of a driver for a prefix in the container."""
        given: dict[str, Any] = {"account": ACCOUNT, "account_key": KEY, "endpoint_url": self.endpoint}
        return AzureOptions(container=CONTAINER, root_prefix=prefix, **(given | more))

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(10)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_LIMIT
        while not self._answers():
            out = (self.directory / "out").read_text(errors="replace")
            assert self._process.poll() is None, f"Azurite ended:\n{out}"
            assert time.monotonic() < deadline, f"Azurite did not come up:\n{out}"
            time.sleep(0.05)  # polling interval

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except OSError:
            return False
        return True


class AzureRelay(Relay):
    """A proxy before Azurite. Requests are signed without the host, so they are good for both."""

    def __init__(self, upstream_port: int, *, certificate: tuple[Path, Path] | None = None) -> None:
        self._protocol = "http" if certificate is None else "https"
        #: By the end of a key, how many more times a copy to it is to look as if it were not done; and what it is then.
        self.pending: dict[str, int] = {}
        self.copy_status = "pending"
        #: Whether the account says that it has a hierarchical namespace, which Azurite has not.
        self.is_hierarchical = False
        super().__init__(upstream_port, certificate=certificate)
        if certificate is not None:
            self.upstream_tls = ssl.create_default_context(cafile=certificate[0])

    @property
    def endpoint(self) -> str:
        return f"{self._protocol}://127.0.0.1:{self.port}/{ACCOUNT}"

    def heal(self) -> None:
        super().heal()
        self.pending.clear()
        self.copy_status = "pending"
        self.is_hierarchical = False

    def serve(self, call: Call) -> Answer:
        status, headers, content = super().serve(call)
        if call.operation == "account":
            headers["x-ms-is-hns-enabled"] = "true" if self.is_hierarchical else "false"
        for end, times in self.pending.items():
            if "x-ms-copy-status" in headers and call.key.endswith(end) and times:
                self.pending[end] -= 1
                headers["x-ms-copy-status"] = self.copy_status
        return status, headers, content

    def describe(self, call: Call) -> None:
        parts = urlsplit(call.target)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        call.key = unquote(parts.path).removeprefix(f"/{ACCOUNT}/{CONTAINER}").lstrip("/")
        kinds = {"appendblock": "append", "list": "list", "batch": "batch"}
        if query.get("restype") == "account":
            call.operation = "account"
        elif query.get("comp") in kinds:
            call.operation = kinds[query["comp"]]
        elif call.method == "PUT" and "x-ms-copy-source" in call.headers:
            call.operation = "copy"
        elif call.method == "PUT":
            call.operation = "create" if call.headers.get("x-ms-blob-type") == "AppendBlob" else "put"
        else:
            call.operation = {"HEAD": "stat", "GET": "read", "DELETE": "delete"}.get(call.method, call.method)

    def error(self, fault: Fault) -> Answer:
        code = fault.code or "ServerBusy"
        body = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>injected</Message></Error>'
        return fault.status, {"content-type": "application/xml", "x-ms-error-code": code}, body.encode()


@functools.cache
def azurite() -> Azurite:
    """The emulator of this process, started by whoever asks first, and gone when the process ends."""
    started = Azurite()
    atexit.register(started.stop)
    return started
