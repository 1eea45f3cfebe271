"""moto, from PyPI: an imitation of S3 in Python that many test against. It keeps everything in its memory.

Not a store for anybody's content; but what it does otherwise than servers do, others may do too: a condition is looked
at and then forgotten, and nobody keeps two requests from passing each other.
"""

from __future__ import annotations

import atexit
import functools
import sys
import tempfile
from pathlib import Path
from typing import Final

from harness.object_stores import BUCKET, S3Server

#: The program comes with the packages `moto[s3]` and `flask-cors`.
PROGRAM: Final = Path(sys.executable).with_name("moto_server")


class Moto(S3Server):
    """Its server, in one process with a thread for each connection."""

    def _start(self) -> None:
        assert PROGRAM.exists(), f"{PROGRAM} is missing: run scripts/setup --soak"
        self._spawn("moto", str(PROGRAM), "-H", "127.0.0.1", "-p", str(self.port))
        self._wait(self._answers, "moto")
        self.client.create_bucket(Bucket=BUCKET)


@functools.cache
def moto() -> Moto:
    """The server of this process, started by whoever asks first, and gone when the process ends."""
    started = Moto(Path(tempfile.mkdtemp(prefix="layerfs-moto-"))).__enter__()
    atexit.register(started.__exit__)
    return started
