"""The storage trees of `make_fixture.sh`, written by Debian's registry: made once, copied for whoever changes them."""

from __future__ import annotations

import os
import random
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[3] / "shared/fixtures/make_fixture.sh"


#: Below those that Linux gives to whoever connects somewhere, as tests beside this one do all the time.
_PORTS = range(15_000, 32_768)
#: Not the one that tests set to begin the same in every run, and so in every process.
_dice = random.SystemRandom()


def free_port() -> int:
    """A TCP port that nothing listens on at the moment, and that nobody is given by chance until it is used."""
    while True:
        port = _dice.choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


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
