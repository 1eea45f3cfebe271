"""`python -m tests.bench`: measures, and prints a table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.clients import client_workloads
from tests.bench.contenders import ALL, Contender, Missing
from tests.bench.data import Data
from tests.bench.measure import MIB, output_of, refaulted
from tests.bench.remote import remote_workloads
from tests.bench.results import as_json, table
from tests.bench.workloads import Bench, Workload, all_workloads


def main() -> int:
    """Measures what was asked for; fails only if a workload fails."""
    workloads = [*all_workloads(), *client_workloads(), *remote_workloads()]
    options = _options([workload.name for workload in workloads])
    chosen = [workload for workload in workloads if not options.only or workload.name in options.only]
    machine = _machine()
    failed: list[str] = []
    refaults = refaulted()
    with tempfile.TemporaryDirectory(prefix="layerfs-bench-", dir=options.directory) as name:
        directory = Path(name)
        contenders, missing = _prepared(directory)
        chosen, unmeasured = _possible(chosen)
        _say(f"making {options.size} MiB and {options.entries} layers in {directory}")
        bench = Bench(Data(directory, options.size * MIB, options.entries), contenders)
        for workload in chosen:
            failed.extend(_rounds(bench, workload, options.rounds, warm_up=not options.quick))
    rows = [row for workload in chosen for row in workload.rows]
    print(machine)
    print(f"{options.size} MiB, {options.entries} layers, {options.rounds} rounds, medians; load {_load()} at the end")
    print(f"page cache that the kernel dropped and had to read again meanwhile: {refaulted() - refaults:,.0f} MiB")
    print("\n".join(table(rows)))
    for line in [*missing, *unmeasured, *failed]:
        print(line)
    if options.json:
        content = {"machine": machine, "missing": missing, "failed": failed, "rows": as_json(rows)}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 1 if failed else 0


def _options(names: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--size", type=int, default=1024, help="MiB of the big layer [default: 1024]")
    parser.add_argument("--entries", type=int, default=10_000, help="small layers to list [default: 10000]")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of every workload [default: 3]")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to FILE, too")
    parser.add_argument("--quick", action="store_true", help="128 MiB, 1000 layers and one round: does it run?")
    parser.add_argument("--directory", default="/var/tmp", help="where 12 times --size is free [default: /var/tmp]")
    options = parser.parse_args()
    if options.quick:
        options.size, options.entries, options.rounds = 128, 1000, 1
    return options


def _prepared(directory: Path) -> tuple[list[Contender], list[str]]:
    """Who takes part, and why the others do not."""
    present, missing = [], []
    for kind in ALL:
        contender = kind()
        try:
            contender.prepare(directory)
        except Missing as exc:
            missing.append(f"missing: {contender.name}: {exc}")
        else:
            present.append(contender)
    return present, missing


def _possible(workloads: Sequence[Workload]) -> tuple[list[Workload], list[str]]:
    """What can be measured here, and why the rest cannot."""
    possible, unmeasured = [], []
    for workload in workloads:
        absent = [program for program in workload.needs if shutil.which(program) is None]
        if absent:
            unmeasured.append(f"not measured: {workload.name}: {', '.join(absent)} not installed")
        else:
            possible.append(workload)
    return possible, unmeasured


def _rounds(bench: Bench, workload: Workload, rounds: int, *, warm_up: bool) -> Iterator[str]:
    """Says what failed.

    The round to warm up does not count. A virtual machine gets memory from its host when it is touched: what had not
    been used lately cost 1.0 to 2.4 s of CPU for a GiB on the machine that this was found on, 0.45 s once it was there.
    Whoever came first paid that for all: `cat` from S3 took 3.8 CPU-s/GiB instead of 1.5.
    """
    for number in range(-1 if warm_up else 0, rounds):
        name = f"round {number + 1} of {rounds}" if number >= 0 else "to warm up"
        began = time.monotonic()
        try:
            workload.measure(bench, number)
        except (OSError, RuntimeError, AssertionError, subprocess.SubprocessError) as exc:
            yield f"failed: {workload.name}, {name}: {type(exc).__name__}: {exc}"
            return
        _say(f"{workload.name}, {name}: {time.monotonic() - began:.1f} s, load {_load()}")
        if number < 0:
            for row in workload.rows:
                row.forget()


def _machine() -> str:
    """What the numbers were measured on."""
    with open("/proc/cpuinfo") as lines:
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    pyfuse3 = output_of(sys.executable, "-c", "import pyfuse3; print(pyfuse3.__version__)").strip()
    return (
        f"{os.cpu_count()} CPUs ({model}), {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, pyfuse3 {pyfuse3}, load {_load()} at the start"
    )


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
