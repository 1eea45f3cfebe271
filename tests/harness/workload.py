"""Clients that write down what they were promised, and the check that every promise was kept.

`python workload.py REPOSITORY SEED JOURNAL` uploads and commits, each time in another way that people use, until
something fails. Before and after each call that may promise something a line goes into the journal, which is on a disk
that stays. The same bytes can be made again from the name, so that what is found later can be judged.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def content(key: str, size: int) -> bytes:
    """The bytes that `key` stands for."""
    return random.Random(key).randbytes(size)


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


# --- the clients -------------------------------------------------------------------------------------------------


class Client:
    """One after the other: an upload, in one of the ways below."""

    def __init__(self, repository: Path, seed: str, journal: Path) -> None:
        self._repository = repository
        self._uploads = repository / "_uploads"
        self._layers = repository / "_layers"
        self._seed = seed
        self._dice = random.Random(seed)
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._scratch = Path(tempfile.mkdtemp(prefix="layerfs-client-"))

    def run(self) -> None:
        """Ends with the first failure, which is written down too."""
        ways: list[Callable[[str, bytes], None]] = [
            *(self.copy_and_move, self.append_and_move, self.sync_and_move),
            *(self.create_by_digest, self.leave, self.rename, self.new_repository),
        ]
        number = 0
        try:
            while True:
                number += 1
                key = f"{self._seed}-{number}"
                size = self._dice.choice([0, 1, 100, 5000, 65536, 300_000, 300_000, 3_000_000])
                self._dice.choice(ways)(key, content(key, size))
        except (OSError, subprocess.CalledProcessError) as error:
            self._note("failed", f"{self._seed}-{number}", why=str(error))
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def copy_and_move(self, key: str, data: bytes) -> None:
        """`cp` and `mv`, the real ones."""
        source = self._scratch / key
        source.write_bytes(data)
        self._note("begin", key, total=len(data), name=key)
        self._command("cp", source, self._uploads / key)
        self._note("saved", key, size=len(data))
        self._note("committing", key)
        self._command("mv", self._uploads / key, self._layers / digest_of(data))
        self._note("committed", key)
        source.unlink()

    def append_and_move(self, key: str, data: bytes) -> None:
        """`>>` in several pieces; each close is a promise."""
        self._append_in_pieces(key, data)
        self._commit(key, data)

    def sync_and_move(self, key: str, data: bytes) -> None:
        """One open file; each fsync is a promise."""
        self._note("begin", key, total=len(data), name=key)
        descriptor = os.open(self._uploads / key, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            done = 0
            for piece in self._pieces(data):
                _write_all(descriptor, piece)
                done += len(piece)
                os.fsync(descriptor)
                self._note("saved", key, size=done)
        finally:
            os.close(descriptor)
        self._commit(key, data)

    def create_by_digest(self, key: str, data: bytes) -> None:
        """`cp layer _layers/sha256:…`, which is committed by its close."""
        data = data or content(key, 1)  # of no bytes there is one layer, which nobody can make twice
        self._note("committing", key, total=len(data))
        descriptor = os.open(self._layers / digest_of(data), os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            _write_all(descriptor, data)
        finally:
            os.close(descriptor)
        self._note("committed", key)

    def leave(self, key: str, data: bytes) -> None:
        """An upload that nobody finishes."""
        self._append_in_pieces(key, data)

    def rename(self, key: str, data: bytes) -> None:
        """An upload that gets another name."""
        self._append_in_pieces(key, data)
        self._note("renaming", key, name=f"{key}-renamed")
        os.rename(self._uploads / key, self._uploads / f"{key}-renamed")
        self._note("renamed", key)

    def new_repository(self, key: str, data: bytes) -> None:
        path = self._repository / "made" / key.lower()
        os.makedirs(path)
        self._note("made", key, path=str(path.relative_to(self._repository)))

    def _append_in_pieces(self, key: str, data: bytes) -> None:
        self._note("begin", key, total=len(data), name=key)
        done = 0
        for piece in self._pieces(data):
            descriptor = os.open(self._uploads / key, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                _write_all(descriptor, piece)
            finally:
                os.close(descriptor)
            done += len(piece)
            self._note("saved", key, size=done)

    def _commit(self, key: str, data: bytes) -> None:
        self._note("committing", key)
        os.rename(self._uploads / key, self._layers / digest_of(data))
        self._note("committed", key)

    def _pieces(self, data: bytes) -> list[bytes]:
        cuts = sorted(self._dice.randint(0, len(data)) for _ in range(self._dice.randint(0, 3)))
        return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def _command(self, *argv: object) -> None:
        subprocess.run([str(word) for word in argv], check=True, capture_output=True)

    def _note(self, event: str, key: str, **more: object) -> None:
        line = json.dumps({"event": event, "key": key, "time": time.time(), **more})
        os.write(self._journal, line.encode() + b"\n")


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def start_client(repository: Path, seed: str, journal: Path) -> subprocess.Popen[bytes]:
    """A client in a process of its own. It ends when something fails."""
    return subprocess.Popen(
        [sys.executable, __file__, str(repository), seed, str(journal)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        stdout=subprocess.DEVNULL,
    )


# --- the check ---------------------------------------------------------------------------------------------------


@dataclass
class Promise:
    """What one client was promised about one upload."""

    key: str
    total: int = 0
    #: The names that the upload may have now.
    names: list[str] = field(default_factory=list)
    #: Bytes that fsync or close has acknowledged; -1: nothing at all was.
    saved: int = -1
    is_committing: bool = False
    is_committed: bool = False
    repository: str | None = None

    @property
    def data(self) -> bytes:
        return content(self.key, self.total)

    @property
    def digest(self) -> str:
        return digest_of(self.data)


@dataclass
class Journal:
    """What all clients of one run were promised, and how they ended."""

    promises: list[Promise]
    failures: list[dict[str, Any]]

    @property
    def acknowledged(self) -> int:
        return sum(promise.is_committed or promise.saved >= 0 for promise in self.promises)


def read_journal(path: Path) -> Journal:
    """A line that was cut off by the end of its writer is no promise."""
    promises: dict[str, Promise] = {}
    failures = []
    for line in path.read_text().split("\n")[:-1] if path.exists() else []:
        event = json.loads(line)
        if event["event"] == "failed":
            failures.append(event)
            continue
        _apply(promises.setdefault(event["key"], Promise(event["key"])), event)
    return Journal(list(promises.values()), failures)


def _apply(promise: Promise, event: dict[str, Any]) -> None:
    promise.total = event.get("total", promise.total)
    kind = event["event"]
    if kind == "saved":
        promise.saved = event["size"]
    elif kind in ("begin", "renaming"):
        promise.names.append(event["name"])
    elif kind == "renamed":
        del promise.names[0]
    elif kind == "committing":
        promise.is_committing = True
    elif kind == "committed":
        promise.is_committed = True
    elif kind == "made":
        promise.repository = event["path"]


def broken_promises(repository: Path, promises: Iterable[Promise]) -> list[str]:
    """What is not as promised, seen through a mount. Uploads that are there are continued and committed."""
    problems: list[str] = []
    for promise in promises:
        if promise.repository is not None:
            if not (repository / promise.repository / "_layers").is_dir():
                problems.append(f"{promise.key}: repository {promise.repository} is lost")
        elif problem := _layer_problem(repository, promise):
            problems.append(f"{promise.key} ({promise.total} bytes, {promise.saved} saved): {problem}")
    return problems


def _layer_problem(repository: Path, promise: Promise) -> str | None:
    layer = repository / "_layers" / promise.digest
    if promise.is_committed or (promise.is_committing and layer.exists()):
        if not layer.exists():
            return "the committed layer is lost"
        return None if layer.read_bytes() == promise.data else "the committed layer is damaged"
    found = [path for name in promise.names if (path := repository / "_uploads" / name).exists()]
    if not found:
        return "the upload is lost" if promise.saved >= 0 else None
    try:
        # A commit that was under way is done again; its bytes may have left the upload already.
        if not promise.is_committing and (problem := _continue_upload(found[0], promise)):
            return problem
        os.rename(found[0], layer)
    except OSError as error:
        return f"it cannot be finished: {error}"
    return None if layer.read_bytes() == promise.data else "the layer finished afterwards is damaged"


def _continue_upload(upload: Path, promise: Promise) -> str | None:
    size = upload.stat().st_size
    # Zeros at the end need not count: whoever goes on where the size says writes them again.
    if any(promise.data[size : max(size, promise.saved)]):
        return f"only {size} bytes are left"
    data, found = promise.data, upload.read_bytes()[:size]
    if found != data[:size]:
        wrong = [place for place, byte in enumerate(found) if byte != data[place]]
        kind = "zeros" if not any(found[place] for place in wrong) else "others"
        return f"of its {size} bytes {len(wrong)} are {kind}, from {wrong[0]} to {wrong[-1]}"
    with open(upload, "ab") as file:
        file.write(data[size:])
    return None


if __name__ == "__main__":
    Client(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])).run()
