"""Lines of the log: what an operation was about stands in them, in text, in JSON, and as fields of the journal."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

#: Logs one failure, with fields as the guard gives them, where `logs.configure` sends it.
PROGRAM = """
import logging, sys
from layerfs import logs
{patch}
logs.configure(level="info", log_format=sys.argv[1], log_file=None, detached=False)
log = logging.getLogger("layerfs.operations")
what = dict(operation="read", path="a\\n\\udcffb", errno="EIO", request=52)
numbers = dict(inode=49, handle=3, offset=512, length=100, duration=0.25)
log.warning("read %r: EIO: why", "a\\nb", extra=what | numbers)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("a bug")
"""
TO_JOURNAL = (
    "import logging_journald; logging_journald.JournaldTransport.SOCKET_PATH = __import__('pathlib').Path({!r})"
)
NO_JOURNAL = "sys.modules['logging_journald'] = None"


def logged(log_format: str, *, patch: str = "", under_systemd: bool = False) -> list[str]:
    """What the program writes to standard error."""
    reading, writing = os.pipe()
    status = os.fstat(writing)
    stream = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"} if under_systemd else {}
    environment = {name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"} | stream
    argv = [sys.executable, "-c", PROGRAM.format(patch=patch), log_format]
    with subprocess.Popen(argv, stderr=writing, env=environment) as process:
        os.close(writing)
        with os.fdopen(reading) as stderr:
            lines = stderr.read().splitlines()
    assert process.returncode == 0
    return lines


def test_text_ends_with_the_numbers() -> None:
    """After the message, in one line."""
    line = logged("text")[0]
    assert line.endswith(
        "WARNING layerfs.operations: read 'a\\nb': EIO: why "
        "[request=52 inode=49 handle=3 offset=512 length=100 duration=0.25]"
    )


def test_json_has_them_as_fields() -> None:
    """Beside the message."""
    record = json.loads(logged("json")[0])
    expected = {"operation": "read", "errno": "EIO", "request": 52, "inode": 49, "handle": 3, "offset": 512}
    assert {name: record[name] for name in expected} == expected
    assert (record["length"], record["duration"], record["message"]) == (100, 0.25, "read 'a\\nb': EIO: why")


def received(receiver: socket.socket) -> dict[str, str]:
    """The fields of one datagram of the journal's protocol."""
    content = receiver.recv(1 << 20)
    fields = {}
    while content:
        line, _, content = content.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(content[:8], sys.byteorder)
            value, content = content[8 : 8 + size], content[9 + size :]
        fields[name.decode()] = value.decode()
    return fields


def test_the_journal_gets_fields(tmp_path: Path) -> None:
    """Under systemd, and standard error gets nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "journal"))
        assert logged("text", patch=TO_JOURNAL.format(str(tmp_path / "journal")), under_systemd=True) == []
        first, second = received(journal), received(journal)
    assert first["MESSAGE"] == "layerfs.operations: read 'a\\nb': EIO: why"
    assert (first["PRIORITY"], first["SYSLOG_IDENTIFIER"]) == ("4", "layerfs")
    assert first["LAYERFS_PATH"] == "a\n\\udcffb"
    numbers = {name: value for name, value in first.items() if name.startswith("LAYERFS_")}
    assert numbers == {
        "LAYERFS_OPERATION": "read",
        "LAYERFS_PATH": "a\n\\udcffb",
        "LAYERFS_ERRNO": "EIO",
        "LAYERFS_REQUEST": "52",
        "LAYERFS_INODE": "49",
        "LAYERFS_HANDLE": "3",
        "LAYERFS_OFFSET": "512",
        "LAYERFS_LENGTH": "100",
        "LAYERFS_DURATION": "0.25",
    }
    assert second["PRIORITY"] == "3"
    assert "ZeroDivisionError" in second["TRACEBACK"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_without_the_library_the_journal_gets_priorities(log_format: str) -> None:
    """As prefixes of the lines, every one of a traceback included."""
    lines = logged(log_format, patch=NO_JOURNAL, under_systemd=True)
    assert lines[0].startswith("<4>")
    assert len(lines) > 1
    assert all(line.startswith("<3>") for line in lines[1:])


def test_somebody_elses_stream_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """What systemd gave a parent, whose child has standard error elsewhere, is left alone."""
    assert logged("text", patch="import os; os.environ['JOURNAL_STREAM'] = '1:2'")[0].endswith("duration=0.25]")
    assert logged("text", patch="import os; os.environ['JOURNAL_STREAM'] = 'x'")[0].endswith("duration=0.25]")
