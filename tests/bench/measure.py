"""Taking the time, the CPU and the memory of commands and daemons."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

MIB = 1 << 20

#: Seconds after which a command is considered to hang.
LIMIT = 900

_TICKS = os.sysconf("SC_CLK_TCK")
_ENVIRONMENT = os.environ | {"LC_ALL": "C"}


def run(*argv: object) -> None:
    """Runs a command; its output is thrown away, its failure is not."""
    seconds_together([argv])


def output_of(*argv: object) -> str:
    """What a command prints."""
    words = [str(argument) for argument in argv]
    return subprocess.run(
        words, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=_ENVIRONMENT, text=True, timeout=LIMIT
    ).stdout


def seconds(*argv: object) -> float:
    """How long a command takes."""
    return seconds_together([argv])


def seconds_together(commands: Sequence[Sequence[object]]) -> float:
    """How long commands take that run at the same time, until the last has ended."""
    began = time.perf_counter()
    processes = [
        subprocess.Popen(
            [str(argument) for argument in argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=_ENVIRONMENT,
        )
        for argv in commands
    ]
    said = [process.communicate(timeout=LIMIT)[1] for process in processes]
    taken = time.perf_counter() - began
    for process, text in zip(processes, said, strict=True):
        if process.returncode:
            said_first = text.decode(errors="replace").partition("\n")[0]
            raise RuntimeError(f"{' '.join(process.args)} ended with {process.returncode}: {said_first}")
    return taken


def wait(delay: float) -> None:
    """Waits for something that only time brings about."""
    time.sleep(delay)


def warm(*paths: Path) -> None:
    """Reads the stored files, so that no round is about the disk: others may have emptied the page cache."""
    run("cat", *paths)


def cpu_seconds(pid: int | None) -> float:
    """CPU that a daemon has used so far; none where there is no daemon."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def peak_memory(pid: int) -> int:
    """The most memory that a process ever had, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status has no VmHWM")


def random_reads(path: Path, size: int, jobs: int, limit: float) -> float:
    """4 KiB reads a second at random offsets, no offset twice, so that FUSE's page cache answers none of them."""
    part = size // MIB // jobs
    name = str(path).replace(":", r"\:")  # else fio takes it for two names
    text = output_of(
        "fio",
        "--name=random",
        f"--filename={name}",
        "--readonly",
        "--rw=randread",
        "--bs=4k",
        f"--size={part}M",
        f"--offset_increment={part}M",
        f"--numjobs={jobs}",
        "--thread",
        "--ioengine=psync",
        "--fadvise_hint=random",
        "--invalidate=0",  # every round has a mount of its own, and the stored file must stay cached
        "--randrepeat=0",
        f"--runtime={int(limit * 1000)}ms",
        "--group_reporting",
        "--output-format=json",
    )
    return float(json.loads(text[text.index("{") :])["jobs"][0]["read"]["iops"])


def refaulted() -> float:
    """MiB of files that the kernel dropped from the page cache and had to read again since it runs: a disturbance."""
    counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counters.get("workingset_refault_file", 0)) * os.sysconf("SC_PAGE_SIZE") / MIB


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
