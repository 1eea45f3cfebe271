"""Real clients of OCI image layouts, as Debian has them, run as root without a service manager or a container.

Each reads its settings from a directory of the test's, so that nothing on the machine is used or changed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

from harness.commands import run, wait_until

SKOPEO = ("skopeo", "--insecure-policy")

#: skopeo, copying everything below an index, and refusing to change a manifest.
COPY = (*SKOPEO, "copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false")


def skopeo_copy(source: str, target: str, *options: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """`skopeo copy --all`, with digests kept."""
    return run(*COPY, *options, source, target, **settings)


def skopeo_copy_to_directory(source: str, directory: Path) -> dict[str, bytes]:
    """Copies an image, and gives what skopeo made of it: files by name."""
    skopeo_copy(source, f"dir:{directory}")
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def umoci(*arguments: object, **settings: Any) -> str:
    """Runs umoci; gives what it prints."""
    return run("umoci", *arguments, **settings).stdout


class Containers:
    """podman and buildah, with images of their own. They run nothing: no namespaces are needed."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="oci-", dir="/tmp")  # their names may not be long
        directory = Path(self._directory.name)
        self._storage = ("--root", directory / "root", "--runroot", directory / "run", "--storage-driver", "vfs")
        self._podman = ("podman", *self._storage, "--tmpdir", directory / "tmp")
        #: For skopeo: these images under a name.
        self.transport = f"containers-storage:[vfs@{directory / 'root'}+{directory / 'run'}]"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._directory.cleanup()

    def podman(self, *arguments: object, **settings: Any) -> str:
        """Gives what it prints."""
        return run(*self._podman, *arguments, **settings).stdout.strip()

    def buildah(self, *arguments: object, **settings: Any) -> str:
        """Gives what it prints."""
        command, *rest = arguments
        return run("buildah", *self._storage, command, *rest, **settings).stdout.strip()

    def image(self, name: str) -> tuple[str, str]:
        """The id, which is the configuration's digest, and the manifest's digest of an image."""
        told = json.loads(self.podman("image", "inspect", name))[0]
        return f"sha256:{told['Id']}", told["Digest"]


_CONTAINERD = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "{directory}/socket"
[ttrpc]
address = "{directory}/ttrpc"
"""


class Containerd:
    """containerd whose content store is a layout: the store is one, but for the index."""

    def __init__(self, directory: Path, layout: Path) -> None:
        self.socket = directory / "socket"
        self._log = directory / "log"
        (directory / "root").mkdir(parents=True)
        (directory / "root/io.containerd.content.v1.content").symlink_to(layout)
        self._config = directory / "config.toml"
        self._config.write_text(_CONTAINERD.format(directory=directory))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["containerd", "--config", str(self._config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(self._answers, f"containerd answers, see {self._log}", seconds=20)
        return self

    def __exit__(self, *_exc: object) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)

    def _answers(self) -> bool:
        return self.socket.exists() and run("ctr", "-a", self.socket, "version", check=False).returncode == 0

    def ctr(self, *arguments: object, **settings: Any) -> str:
        """Gives what it prints."""
        return run("ctr", "--address", self.socket, *arguments, **settings).stdout
