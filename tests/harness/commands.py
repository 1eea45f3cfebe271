"""Running ordinary tools, the way users do, with a time limit."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Seconds that no single command on a healthy mount comes near.
LIMIT = 60

#: How many times as long as on an idle machine something may take on a busy one.
PATIENCE = 4

#: Seconds between two looks.
_PAUSE = 0.02


def run(*argv: object, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs a command; a failure shows what it said."""
    return _finish([str(argument) for argument in argv], check, options)


def shell(script: str, *arguments: object, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs a bash script, with `arguments` as `$1` and so on; any failing step ends it."""
    argv = ["bash", "-euo", "pipefail", "-c", script, "bash", *map(str, arguments)]
    return _finish(argv, check, options)


def _finish(argv: list[str], check: bool, options: dict) -> subprocess.CompletedProcess[str]:
    options = {"env": os.environ | {"LC_ALL": "C.UTF-8"}, "errors": "replace", "timeout": LIMIT} | options
    result = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **options)
    if check:
        assert result.returncode == 0, (
            f"{argv} ended with {result.returncode}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
        )
    return result


def wait_until(condition: Callable[[], object], what: str, *, seconds: float = 10) -> None:
    """Returns as soon as `condition` holds; fails when it does not in time.

    A machine that is too busy to look as often as `seconds` allow gives those who are waited for no time either: then
    they have longer, up to `PATIENCE` times.
    """
    started = time.monotonic()
    looks = seconds / _PAUSE
    while not condition():
        looks -= 1
        took = time.monotonic() - started
        assert took < seconds or (looks > 0 and took < PATIENCE * seconds), f"not within {took:.1f} s: {what}"
        time.sleep(_PAUSE)  # polling interval


@contextmanager
def opened(path: Path | str, flags: int, mode: int = 0o644) -> Iterator[int]:
    """A descriptor that is closed at the end; an error of that close is raised."""
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise
    os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Writes everything, in as many calls as it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def append(path: Path | str, data: bytes) -> None:
    """What `printf … >> path` does."""
    with opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as descriptor:
        write_all(descriptor, data)


def get_xattr(path: Path | str, name: str) -> str:
    return os.getxattr(path, name).decode()
