"""The storage trees of `make_fixture.sh`, written by Debian's registry: made once, copied for whoever changes them."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[3] / "shared/fixtures/make_fixture.sh"


def free_port() -> int:
    """A TCP port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_fixture(directory: Path) -> Path:
    """`directory`, with `storage/`, `damaged/`, `tags.jsonl` and `damaged.txt` in it."""
    if not SCRIPT.is_file():
        raise FileNotFoundError(
            f"{SCRIPT} is missing: the tests on real registry storage need `shared/` beside the repository"
        )
    if not (directory / "complete").exists():
        result = subprocess.run(
            ["bash", str(SCRIPT), str(directory)],
            env=os.environ | {"PORT": str(free_port())},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )
        if result.returncode:
            raise RuntimeError(f"{SCRIPT} failed:\n{result.stdout}")
        (directory / "complete").touch()
    return directory


def faults(directory: Path) -> dict[str, list[str]]:
    """What `damaged.txt` says: kind of fault -> where."""
    lines = (directory / "damaged.txt").read_text().splitlines()
    return {kind: where for kind, *where in (line.split(" ") for line in lines)}
