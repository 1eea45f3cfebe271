"""Reading and writing a registry on S3 that is 40 ms away, beside others that mount a bucket: `rclone mount` and s3fs.

The store is a real Ceph gateway with all its data in memory. `delay.c` stands before it: every request waits, and is
counted. The store, the way to it and all mounts share this machine, so that with few cores it is they who are measured.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.fixture import free_port
from harness.mount import Mount
from harness.object_stores import ACCESS_KEY, BUCKET, SECRET_KEY, gateway
from harness.storage import digest_of

from tests.bench import measure
from tests.bench.contenders import LAYERFS
from tests.bench.measure import MIB
from tests.bench.results import RATE, SECONDS, Against, AtMost, Row, Unit
from tests.bench.workloads import Bench, Workload

#: Milliseconds that every request waits.
LATENCY = 40

BIG = "bench/read"
MANY = "bench/many"

#: Layers of one repository, and repositories that `find` walks.
_LAYERS = 1000
_REPOSITORIES = 50

_RANDOM_READS = 100
_PIECE = 16 * MIB

MILLISECONDS = Unit("ms", more_is_better=False, digits=1)

RCLONE = "rclone on S3"
S3FS = "s3fs"

_NEEDS = ["ceph-mon", "ceph-osd", "radosgw", "gcc"]


@dataclass(frozen=True)
class Counted:
    """What went to the store."""

    get: int
    head: int
    list: int
    other: int
    connections: int
    #: Of answers, and of what was sent with requests.
    bytes: int
    sent: int

    @property
    def requests(self) -> int:
        return self.get + self.head + self.list + self.other


class _Remote:
    """The store with a registry of one big layer, a repository of many, and many repositories; `url` is far away."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.rgw = gateway()
        self._directory = Path(tempfile.mkdtemp(prefix="layerfs-bench-remote-"))
        atexit.register(shutil.rmtree, self._directory, ignore_errors=True)
        self.port = free_port()
        delay = self._directory / "delay"
        source = Path(__file__).parent / "delay.c"
        subprocess.run(["gcc", "-O2", "-pthread", "-o", str(delay), str(source)], check=True)
        self._proxy = subprocess.Popen([str(delay), str(self.port), str(self.rgw.port), str(LATENCY)])
        atexit.register(self._proxy.kill)
        os.environ.update(self.rgw.environment)
        self.flat: list[str] = []
        self.big = self._put_big()
        self._put_small()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def source(self) -> str:
        """What layerfs mounts."""
        return f"s3://{BUCKET}/bench?endpoint_url={self.url}"

    def place(self, name: str) -> Path:
        """A new directory to mount on."""
        return Path(tempfile.mkdtemp(prefix=f"{name.replace(' ', '-')}-", dir=self._directory))

    def counted(self) -> Counted:
        """What went through since this was asked for the last time."""
        with urllib.request.urlopen(f"{self.url}/-/counts", timeout=30) as answer:  # noqa: S310 - our own
            return Counted(**json.load(answer))

    def wait_stored(self, key: str, size: int) -> None:
        """Waits until an object is there: some have it stored after `close`."""
        deadline = time.monotonic() + 300
        while size not in [found["Size"] for found in self._listed(key)]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{key} was not stored")
            time.sleep(0.02)  # polling interval

    def remove(self, *keys: str) -> None:
        """So that there is room for the next one."""
        for key in keys:
            for found in self._listed(key):
                self.rgw.client.delete_object(Bucket=BUCKET, Key=found["Key"])

    def _listed(self, key: str) -> list[dict]:
        found: list[dict] = self.rgw.client.list_objects_v2(Bucket=BUCKET, Prefix=f"bench/{key}").get("Contents", [])
        return found

    def _put(self, key: str, content: bytes) -> None:
        self.rgw.client.put_object(Bucket=BUCKET, Key=f"bench/{key}", Body=content)

    def _put_big(self) -> str:
        """In parts, as a registry does: the store would not take it in one."""
        import hashlib

        client, key = self.rgw.client, "bench/upload"
        upload = client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        hashed, parts = hashlib.sha256(), []
        for number in range(self.size // _PIECE):
            piece = os.urandom(_PIECE)
            hashed.update(piece)
            answer = client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=number + 1, Body=piece)
            parts.append({"PartNumber": number + 1, "ETag": answer["ETag"]})
        client.complete_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})
        digest = f"sha256:{hashed.hexdigest()}"
        client.copy_object(Bucket=BUCKET, Key=f"bench/{_blob(digest)}", CopySource={"Bucket": BUCKET, "Key": key})
        client.delete_object(Bucket=BUCKET, Key=key)
        self._put(_link(BIG, digest), digest.encode())
        return digest

    def _put_small(self) -> None:
        for number in range(_LAYERS):
            content = f"layer {number}\n".encode()
            digest = digest_of(content)
            self._put(_blob(digest), content)
            self._put(_link(MANY, digest), digest.encode())
            # For those who know no registries: a directory with as many files.
            self._put(f"flat/{digest[7:]}", content)
        for number in range(_REPOSITORIES):
            self._put(_link(f"many/group{number % 5}/repository{number}", self.big), self.big.encode())


def _blob(digest: str) -> str:
    return f"docker/registry/v2/blobs/sha256/{digest[7:9]}/{digest[7:]}/data"


def _link(repository: str, digest: str) -> str:
    return f"docker/registry/v2/repositories/{repository}/_layers/sha256/{digest[7:]}/link"


@functools.cache
def _remote(size: int) -> _Remote:
    return _Remote(size)


# --- who takes part ---------------------------------------------------------------------------------------------------


@dataclass
class _Served:
    """A mount: the big layer, the directory of many files, where `find` begins, and the daemon."""

    big: Path
    many: Path
    names: Path
    pid: int


@contextmanager
def _layerfs(remote: _Remote) -> Iterator[_Served]:
    # A long time to live is for a storage that is far away; what is measured afterwards is measured within it.
    with Mount(remote.source, remote.place("layerfs"), "--metadata-ttl", "30") as mount:
        assert mount.process is not None
        yield _Served(
            mount.path / BIG / "_layers" / remote.big,
            mount.path / MANY / "_layers",
            mount.path / "many",
            mount.process.pid,
        )


def _beside(root: Path, remote: _Remote, pid: int) -> _Served:
    registry = root / "docker/registry/v2/repositories"
    return _Served(root / _blob(remote.big), root / "flat", registry / "many", pid)


@contextmanager
def _rclone(remote: _Remote) -> Iterator[_Served]:
    """With its defaults, but that it takes the store's times: else it asks for each file's own; and that it stores what
    is written, which it gathers in a file, when that is closed and not some seconds later."""
    place = remote.place("rclone")
    own = Path(sys.executable).parent / "rclone"
    program = str(own) if own.exists() else "rclone"
    store = f":s3,provider=Ceph,env_auth,endpoint='{remote.url}':{BUCKET}/bench"
    options = ["--config", "/dev/null", "--use-server-modtime", "--dir-cache-time", "30s"]
    options += [
        "--vfs-cache-mode",
        "writes",
        "--vfs-write-back",
        "0s",
        "--cache-dir",
        str(remote.place("rclone-cache")),
    ]
    # Old ones do not start with a variable that is for others.
    environment = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
    with _daemon([program, "mount", *options, store, str(place)], place, environment) as pid:
        yield _beside(place, remote, pid)


@contextmanager
def _s3fs(remote: _Remote) -> Iterator[_Served]:
    """Told to do as much at a time as it can."""
    place = remote.place("s3fs")
    options = f"url={remote.url},use_path_request_style,parallel_count=16,multireq_max=64,multipart_size=16"
    environment = os.environ | {"AWSACCESSKEYID": ACCESS_KEY, "AWSSECRETACCESSKEY": SECRET_KEY}
    command = ["s3fs", f"{BUCKET}:/bench", str(place), "-f", "-o", options]
    with _daemon(command, place, environment) as pid:
        yield _beside(place, remote, pid)


@contextmanager
def _daemon(command: Sequence[str], place: Path, environment: dict[str, str]) -> Iterator[int]:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not os.path.ismount(place):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not mount")
            time.sleep(0.05)  # polling interval
        yield process.pid
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False, stderr=subprocess.DEVNULL)
        process.terminate()
        process.wait(30)


_WAYS: dict[str, tuple[str, Callable]] = {
    LAYERFS: ("", _layerfs),
    RCLONE: ("rclone", _rclone),
    S3FS: ("s3fs", _s3fs),
}


def _turns(number: int) -> list[tuple[str, Callable]]:
    """Who is here, beginning with another one in every round."""
    ways = [(name, way) for name, (program, way) in _WAYS.items() if not program or shutil.which(program)]
    return [*ways[number % len(ways) :], *ways[: number % len(ways)]]


# --- workloads --------------------------------------------------------------------------------------------------------


def remote_workloads() -> list[Workload]:
    """All of them; the store is started by the first that is measured."""
    return [_whole_layer(), _random_reads(), _listing(), _finding(), _upload()]


def _whole_layer() -> Workload:
    row = Row(
        f"cat from S3, {LATENCY} ms away",
        RATE,
        [
            Against(RCLONE),
            Against(S3FS),
            AtMost("s for each GiB", 3.41),
            AtMost("CPU-s/GiB of the daemon", 1.5),
            AtMost("GETs for each GiB", 140, digits=0),
            AtMost("HEADs", 0, digits=0),
            AtMost("MB of memory at the most", 150, digits=0),
        ],
    )
    first = Row("cat from S3, first byte", MILLISECONDS, [Against(RCLONE), AtMost("ms more than one request", 20, 1)])

    def one_round(bench: Bench, number: int) -> None:
        remote = _remote(bench.data.size)
        gibibytes = remote.size / (1 << 30)
        for name, way in _turns(number):
            with way(remote) as served:
                os.stat(served.big)
                began = time.perf_counter()
                with served.big.open("rb", buffering=0) as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                    os.pread(file.fileno(), 1, remote.size // 2)
                taken = (time.perf_counter() - began) * 1000
                first.add(name, taken)
                remote.counted()
                used = measure.cpu_seconds(served.pid)
                seconds = measure.seconds("cat", served.big)
                used = measure.cpu_seconds(served.pid) - used
                row.add(name, remote.size / MIB / seconds)
                counted = remote.counted()
                if name == LAYERFS:
                    first.note("ms more than one request", taken - LATENCY)
                    row.note("s for each GiB", seconds / gibibytes)
                    row.note("CPU-s/GiB of the daemon", used / gibibytes)
                    row.note("GETs for each GiB", counted.get / gibibytes)
                    row.note("HEADs", counted.head)
                    row.note("MB of memory at the most", measure.peak_memory(served.pid) / 1e6)

    return Workload("remote-cat", [row, first], one_round, needs=_NEEDS)


def _random_reads() -> Workload:
    row = Row(
        f"random 4 KiB from S3, {LATENCY} ms away",
        MILLISECONDS,
        [
            Against(RCLONE),
            Against(S3FS),
            AtMost("times the latency", 1.2),
            AtMost("GETs for each read", 1),
            AtMost("KiB for each read", 129, digits=0),
            AtMost("new connections", 2, digits=0),
        ],
    )

    def one_round(bench: Bench, number: int) -> None:
        remote = _remote(bench.data.size)
        step = remote.size // _RANDOM_READS
        places = [(each * 37) % _RANDOM_READS * step + 4096 * (each % 7) for each in range(_RANDOM_READS)]
        for name, way in _turns(number):
            with way(remote) as served, served.big.open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                os.pread(file.fileno(), 1, remote.size - 1)
                remote.counted()
                taken = [_milliseconds(file.fileno(), place) for place in places]
                counted = remote.counted()
                row.add(name, statistics.median(taken))
                if name == LAYERFS:
                    row.note("times the latency", statistics.median(taken) / LATENCY)
                    row.note("GETs for each read", counted.get / len(places))
                    row.note("KiB for each read", counted.bytes / len(places) / 1024)
                    row.note("new connections", counted.connections)

    return Workload("remote-random", [row], one_round, needs=_NEEDS)


def _milliseconds(descriptor: int, place: int) -> float:
    began = time.perf_counter()
    os.pread(descriptor, 4096, place)
    return (time.perf_counter() - began) * 1000


def _listing() -> Workload:
    cold = Row(
        f"ls -l of {_LAYERS} layers on S3",
        SECONDS,
        [Against(RCLONE), Against(S3FS), AtMost("s for the first time", 1.2), AtMost("LISTs", 5, digits=0)],
    )
    warm = Row(
        f"ls -l of {_LAYERS} layers on S3, again",
        SECONDS,
        [Against(RCLONE), Against(S3FS), AtMost("requests", 0, digits=0), AtMost("ms for it", 20, digits=1)],
    )

    def one_round(bench: Bench, number: int) -> None:
        remote = _remote(bench.data.size)
        for name, way in _turns(number):
            with way(remote) as served:
                os.stat(served.many)
                remote.counted()
                first = measure.seconds("ls", "-l", served.many)
                counted = remote.counted()
                again = measure.seconds("ls", "-l", served.many)
                cold.add(name, first)
                warm.add(name, again)
                if name == LAYERFS:
                    cold.note("s for the first time", first)
                    cold.note("LISTs", counted.list)
                    warm.note("requests", remote.counted().requests)
                    warm.note("ms for it", again * 1000)

    return Workload("remote-ls", [cold, warm], one_round, needs=_NEEDS)


def _finding() -> Workload:
    row = Row(
        f"find over {_REPOSITORIES} repositories on S3",
        SECONDS,
        [Against(RCLONE), Against(S3FS), AtMost("requests for each directory", 1.1)],
    )

    def one_round(bench: Bench, number: int) -> None:
        remote = _remote(bench.data.size)
        for name, way in _turns(number):
            with way(remote) as served:
                os.stat(served.names)
                remote.counted()
                row.add(name, measure.seconds("find", served.names, "-name", "_*", "-prune", "-o", "-print"))
                if name == LAYERFS:
                    row.note("requests for each directory", remote.counted().requests / (_REPOSITORIES + 6))

    return Workload("remote-find", [row], one_round, needs=_NEEDS)


def _upload() -> Workload:
    row = Row(
        f"cp into _uploads + mv to the digest, S3 {LATENCY} ms away",
        RATE,
        [
            Against(RCLONE),
            Against(S3FS),
            AtMost("CPU-s/GiB of the daemon", 1.5),
            AtMost("requests of the mv", 8, digits=0),
            AtMost("KiB through here in the mv", 64, digits=0),
            AtMost("s for the mv", 2),
        ],
    )

    def one_round(bench: Bench, number: int) -> None:
        remote, size = _remote(bench.data.size), bench.data.new.stat().st_size
        for name, way in _turns(number):
            with way(remote) as served:
                if name == LAYERFS:
                    row.add(name, size / MIB / _upload_by_layerfs(bench, remote, served, row))
                    continue
                began = time.perf_counter()
                measure.run("cp", bench.data.new, served.many / "new")
                remote.wait_stored("flat/new", size)
                row.add(name, size / MIB / (time.perf_counter() - began))
            remote.remove("flat/new")

    return Workload("remote-upload", [row], one_round, needs=_NEEDS)


def _upload_by_layerfs(bench: Bench, remote: _Remote, served: _Served, row: Row) -> float:
    """The seconds that it took."""
    uploads, digest = served.many.parent / "_uploads", bench.data.new_digest
    used = measure.cpu_seconds(served.pid)
    copying = measure.seconds("cp", bench.data.new, uploads / "new")
    remote.counted()
    moving = measure.seconds("mv", uploads / "new", uploads.parent / "_layers" / digest)
    counted = remote.counted()
    row.note("CPU-s/GiB of the daemon", (measure.cpu_seconds(served.pid) - used) * (1 << 30) / remote.size)
    row.note("requests of the mv", counted.requests)
    row.note("KiB through here in the mv", (counted.bytes + counted.sent) / 1024)
    row.note("s for the mv", moving)
    remote.remove(_blob(digest), _link(MANY, digest))
    return copying + moving
