"""The workloads, and the goals of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from harness.registry import DockerRegistry

from tests.bench import measure
from tests.bench.contenders import BINDFS, DIRECT, LAYERFS, PASSTHROUGH, RCLONE, Contender, ServedByLayerfs
from tests.bench.data import PUSH, READ, READERS, Data, remove
from tests.bench.measure import MIB
from tests.bench.results import IOPS, MEMORY, MICROSECONDS, RATE, SECONDS, Against, AtMost, Row

#: Seconds that random reads go on at the most; rclone would take minutes to read every page once.
_RANDOM_LIMIT = 3.0

#: Uploads that are written at the same time while memory is watched.
_UPLOADS = 8

REGISTRY = "docker-registry"
SYNCED = "cp, sync, sha256sum"


@dataclass
class Bench:
    """What a workload needs: the data, where new mounts go, and who takes part."""

    data: Data
    contenders: Sequence[Contender]

    def turns(self, number: int) -> Sequence[Contender]:
        """All contenders, beginning with another one in every round."""
        start = number % len(self.contenders)
        return [*self.contenders[start:], *self.contenders[:start]]

    @property
    def layerfs(self) -> Contender:
        return next(contender for contender in self.contenders if contender.name == LAYERFS)


@dataclass(frozen=True)
class Workload:
    """One workload under the name that `--only` takes. `measure` does one round, into all its rows; `needs` are
    programs."""

    name: str
    rows: Sequence[Row]
    measure: Callable[[Bench, int], None]
    needs: Sequence[str] = ()


# --- reading -------------------------------------------------------------------------------------------------


def _whole_file() -> Workload:
    first = Row(
        "cat, first read",
        RATE,
        [
            Against(RCLONE, 2.5),
            Against(PASSTHROUGH, 1.0),
            Against(BINDFS),
            Against(DIRECT),
            AtMost("CPU-s/GiB of the daemon", 0.35),
        ],
    )
    again = Row(
        "cat, again after reopening",
        RATE,
        [
            Against(PASSTHROUGH, 0.9),
            Against(RCLONE, 10),
            Against(DIRECT),
            AtMost("reads that reach the daemon", 0, digits=0),
        ],
    )

    def one_round(bench: Bench, number: int) -> None:
        mebibytes = bench.data.size / MIB
        for contender in bench.turns(number):
            measure.warm(bench.data.storage.blob(bench.data.big))
            with contender.served(bench.data.storage) as served:
                layer = served.layer(bench.data.big)
                used = measure.cpu_seconds(served.pid)
                first.add(contender.name, mebibytes / measure.seconds("cat", layer))
                used = measure.cpu_seconds(served.pid) - used
                if not isinstance(served, ServedByLayerfs):
                    again.add(contender.name, mebibytes / measure.seconds("cat", layer))
                    continue
                first.note("CPU-s/GiB of the daemon", used * 1024 / mebibytes)
                reads = served.count("read")
                again.add(contender.name, mebibytes / measure.seconds("cat", layer))
                again.note("reads that reach the daemon", reads())

    return Workload("cat", [first, again], one_round)


def _random_reads(jobs: int) -> Workload:
    title = f"random 4 KiB, {jobs} job{'s' if jobs > 1 else ''}"
    row = Row(title, IOPS, [Against(RCLONE, 10), Against(PASSTHROUGH, 1.5), Against(BINDFS)])

    def one_round(bench: Bench, number: int) -> None:
        for contender in bench.turns(number):
            measure.warm(bench.data.storage.blob(bench.data.big))
            with contender.served(bench.data.storage) as served:
                layer = served.layer(bench.data.big)
                row.add(contender.name, measure.random_reads(layer, bench.data.size, jobs, _RANDOM_LIMIT))

    return Workload(f"random{jobs}", [row], one_round, needs=["fio"])


def _parallel(readers: int) -> Workload:
    """Every reader has a layer of its own; and all read the same one, each a part of it."""
    goals = [Against(RCLONE, 2.5), Against(PASSTHROUGH, 0.8), Against(DIRECT)]
    different = Row(f"{readers} readers, different layers", RATE, goals)
    same = Row(f"{readers} readers, the same layer", RATE, goals)

    def one_round(bench: Bench, number: int) -> None:
        data = bench.data
        digests = data.parts[:readers]
        part = data.size // MIB // readers
        for contender in bench.turns(number):
            measure.warm(*map(data.storage.blob, [data.big, *digests]))
            with contender.served(data.storage) as served:
                commands = [["cat", served.layer(digest)] for digest in digests]
                mebibytes = data.size / MIB * readers / READERS
                different.add(contender.name, mebibytes / measure.seconds_together(commands))
                layer = served.layer(data.big)
                commands = [["dd", f"if={layer}", "bs=1M", f"skip={n * part}", f"count={part}"] for n in range(readers)]
                same.add(contender.name, part * readers / measure.seconds_together(commands))

    return Workload(f"parallel{readers}", [different, same], one_round)


def _tool(name: str, title: str, *command: str) -> Workload:
    row = Row(title, RATE, [Against(RCLONE), Against(PASSTHROUGH), Against(DIRECT)])

    def one_round(bench: Bench, number: int) -> None:
        for contender in bench.turns(number):
            measure.warm(bench.data.storage.blob(bench.data.big))
            with contender.served(bench.data.storage) as served:
                taken = measure.seconds(*command, served.layer(bench.data.big))
                row.add(contender.name, bench.data.size / MIB / taken)

    return Workload(name, [row], one_round)


# --- listing -------------------------------------------------------------------------------------------------


def _listing() -> Workload:
    first = Row("ls -l, all layers, first time", SECONDS, [Against(RCLONE, 3), Against(DIRECT), Against(PASSTHROUGH)])
    again = Row("ls -l, all layers, again", SECONDS, [Against(DIRECT, round(1 / 1.5, 2)), Against(RCLONE)])
    later = Row("ls -l, all layers, after the TTL", SECONDS, [Against(DIRECT), Against(RCLONE)])

    def one_round(bench: Bench, number: int) -> None:
        for contender in bench.turns(number):
            command: Sequence[object]
            with contender.served(bench.data.storage, "--metadata-ttl", "2") as served:
                if isinstance(served, ServedByLayerfs):
                    command = ["ls", "-l", served.many]
                elif contender.name == DIRECT:
                    command = ["ls", "-l", bench.data.flat]
                else:
                    command = ["ls", "-lR", served.root / "docker/registry/v2/blobs"]
                bench.data.warm_small_layers()
                first.add(contender.name, measure.seconds(*command))
                again.add(contender.name, measure.seconds(*command))
                measure.wait(2.1)
                later.add(contender.name, measure.seconds(*command))

    return Workload("ls", [first, again, later], one_round)


def _small_files() -> Workload:
    row = Row(
        "find | xargs cat, all small layers", MICROSECONDS, [Against(RCLONE), Against(PASSTHROUGH), Against(DIRECT)]
    )
    script = 'find "$1" -type f -size -2k -print0 | xargs -0 cat'

    def one_round(bench: Bench, number: int) -> None:
        for contender in bench.turns(number):
            bench.data.warm_small_layers()
            with contender.served(bench.data.storage) as served:
                tree = served.many if isinstance(served, ServedByLayerfs) else served.root / "docker/registry/v2/blobs"
                taken = measure.seconds("bash", "-c", script, "bash", tree)
                row.add(contender.name, taken * 1e6 / bench.data.entries)

    return Workload("small", [row], one_round)


# --- writing -------------------------------------------------------------------------------------------------


def _upload() -> Workload:
    row = Row(
        "cp into _uploads + mv to the digest",
        RATE,
        [Against(DIRECT, 0.9), Against(REGISTRY, 1.0), Against(SYNCED), AtMost("ms for the mv", 50, digits=1)],
    )
    ways = [_upload_by_layerfs, _upload_by_copying, _upload_by_copying_and_syncing, _upload_by_http]

    def one_round(bench: Bench, number: int) -> None:
        measure.warm(bench.data.new)
        start = number % len(ways)
        for way in [*ways[start:], *ways[:start]]:
            way(bench, row)

    return Workload("upload", [row], one_round, needs=["docker-registry", "curl"])


def _upload_by_layerfs(bench: Bench, row: Row) -> None:
    data = bench.data
    storage = data.empty_storage("pushed")
    with bench.layerfs.served(storage) as served:
        uploads = served.root / PUSH / "_uploads"
        copied = measure.seconds("cp", data.new, uploads / "layer.tar")
        moved = measure.seconds("mv", uploads / "layer.tar", uploads.parent / "_layers" / data.new_digest)
        row.add(LAYERFS, data.size / MIB / (copied + moved))
        row.note("ms for the mv", moved * 1000)
    remove(storage.root)


def _upload_by_copying(bench: Bench, row: Row) -> None:
    copy = bench.data.directory / "copy"
    taken = measure.seconds("cp", bench.data.new, copy) + measure.seconds("sha256sum", copy)
    row.add(DIRECT, bench.data.size / MIB / taken)
    remove(copy)


def _upload_by_copying_and_syncing(bench: Bench, row: Row) -> None:
    """The same, as safe as a layer is after its commit."""
    copy = bench.data.directory / "copy"
    taken = measure.seconds("cp", bench.data.new, copy) + measure.seconds("sync", copy)
    row.add(SYNCED, bench.data.size / MIB / (taken + measure.seconds("sha256sum", copy)))
    remove(copy)


def _upload_by_http(bench: Bench, row: Row) -> None:
    """POST, PATCH and PUT, as clients push."""
    data = bench.data
    storage = data.empty_storage("pushed")
    with DockerRegistry(storage.root, data.directory / "registry") as registry:
        answer = data.directory / "answer"
        taken = measure.seconds("curl", "-sSf", "-X", "POST", "-D", answer, f"{_url(registry)}/blobs/uploads/")
        chunk = ["-H", "Content-Type: application/octet-stream", "-T", data.new]
        taken += measure.seconds("curl", "-sSf", "-X", "PATCH", *chunk, "-D", answer, _location(answer))
        taken += measure.seconds("curl", "-sSf", "-X", "PUT", f"{_location(answer)}&digest={data.new_digest}")
    if not storage.blob(data.new_digest).is_file():
        raise RuntimeError("docker-registry did not take the layer")
    row.add(REGISTRY, data.size / MIB / taken)
    remove(storage.root)


def _url(registry: DockerRegistry) -> str:
    return f"http://{registry.host}/v2/{PUSH}"


def _location(answer: Path) -> str:
    """Where the registry said to go on."""
    lines = answer.read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.lower().startswith("location:"))


# --- memory --------------------------------------------------------------------------------------------------


def _memory() -> Workload:
    title = f"memory, {READERS} readers + {_UPLOADS} uploads"
    row = Row(title, MEMORY, [AtMost("MB at the most", 120, digits=0)])

    def one_round(bench: Bench, number: int) -> None:
        data = bench.data
        with ExitStack() as stack:
            served = stack.enter_context(bench.layerfs.served(data.storage))
            uploads = [served.root / READ / "_uploads" / f"upload-{number}" for number in range(_UPLOADS)]
            reads = [["cat", served.layer(digest), served.layer(data.big)] for digest in data.parts]
            writes = [["cp", data.new, upload] for upload in uploads]
            measure.seconds_together([*reads, *writes])
            megabytes = measure.peak_memory(served.pid) / 1e6
            row.add(LAYERFS, megabytes)
            row.note("MB at the most", megabytes)
            remove(*uploads)

    return Workload("memory", [row], one_round)


def all_workloads() -> list[Workload]:
    """Every workload, in the order of the table, with empty rows."""
    return [
        _whole_file(),
        _random_reads(1),
        _random_reads(8),
        _parallel(8),
        _parallel(32),
        _tool("sha256sum", "sha256sum", "sha256sum"),
        _tool("tar", "tar t, reading everything", "tar", "--no-seek", "-tf"),
        _listing(),
        _small_files(),
        _upload(),
        _memory(),
    ]
