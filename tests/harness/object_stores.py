"""Servers of S3 that run here, and what tests need of each; and the one that most of them have, Ceph's RADOS gateway.

The gateway is that of Debian's packages, with all its data in memory: a real monitor, a real OSD and a real gateway, so
what it answers is what Ceph answers. Others are in modules of their own (`seaweedfs`, `swift`). Each runs once for the
whole session, because it takes seconds to start; each test has a prefix of its own in one bucket.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import http.client
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self

import botocore.config
import botocore.session

from harness.fixture import free_port
from layerfs.driver.s3_options import S3Options

ACCESS_KEY: Final = "test"
SECRET_KEY: Final = "testsecret"  # noqa: S105 - of a store that lives for a minute
BUCKET: Final = "registry"

#: Seconds for each of the daemons to come up.
START_LIMIT: Final = 60

# What the SDK knows of AWS's services is 2 MB of JSON, which every session would read for itself: half of the time that
# it takes to make a driver and to ask it something.
botocore.session.create_loader = functools.cache(botocore.session.create_loader)

#: No authentication among the daemons, one copy of everything, and no waiting for others that could vote: made for one
#: machine. The gateway clears deleted objects away at once, or their memory would only grow.
_CEPH_CONF: Final = """\
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{mon_port}
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
ms bind msgr2 = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
mon tick interval = 1
paxos propose interval = 0.02
paxos min wait = 0.01
log file = {directory}/$name.log
admin socket = {directory}/$name.$pid.asok
pid file = {directory}/$name.pid
run dir = {directory}
[mon]
mon data = {directory}/mon
mon data avail crit = 1
mon data avail warn = 2
[mon.a]
mon addr = v1:127.0.0.1:{mon_port}
[osd]
osd data = {directory}/osd
osd class update on start = false
osd crush update on start = false
osd objectstore = memstore
memstore device bytes = 4294967296
osd op num shards = 2
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw thread pool size = 32
rgw enable ops log = false
rgw enable usage log = false
rgw dynamic resharding = false
rgw enable quota threads = false
rgw enable lc threads = false
rgw run sync thread = false
rgw gc obj min wait = 1
rgw gc processor period = 5
rgw gc processor max time = 5
rgw gc max objs = 8
debug rgw = 0
"""


class CommandFailed(Exception):
    """A program of Ceph did not do what it was to do."""


class S3Server:
    """A server of S3 with one user and one bucket, as a context manager; what it consists of is up to a subclass."""

    access_key = ACCESS_KEY
    secret_key = SECRET_KEY

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in its environment to use it."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @functools.cached_property
    def client(self) -> Any:
        """A client of the SDK, to look at what is stored without any code of ours."""
        config = botocore.config.Config(s3={"addressing_style": "path"})
        return botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=config,
        )

    def options(self, prefix: str, **more: Any) -> S3Options:
        """The options of a driver for a prefix in the bucket; `endpoint_url` can be that of something in between."""
        given = {
            "endpoint_url": self.endpoint,
            "access_key_id": self.access_key,
            "secret_access_key": self.secret_key,
            "region": "us-east-1",
        }
        return S3Options(bucket=BUCKET, root_prefix=prefix, **(given | more))

    def registry_config(self, prefix: str, *, signing_key: str) -> str:
        """The configuration of a registry that has its storage under a prefix in the bucket."""
        return f"""\
version: 0.1
log: {{level: info}}
storage:
  s3:
    accesskey: {self.access_key}
    secretkey: {self.secret_key}
    region: us-east-1
    regionendpoint: {self.endpoint}
    bucket: {BUCKET}
    rootdirectory: /{prefix}
    secure: false
  redirect: {{disable: true}}
  delete: {{enabled: true}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: "127.0.0.1:5000", secret: {signing_key}}}
"""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait(10)
        self._processes.clear()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self) -> None:
        """Starts its processes, and makes the bucket."""
        raise NotImplementedError

    def _spawn(self, name: str, *command: str, **more: Any) -> None:
        with (self.directory / f"{name}.out").open("wb") as out:
            self._processes.append(
                subprocess.Popen(
                    # Also when the tests are killed nothing of it stays.
                    ["setpriv", "--pdeathsig", "KILL", *command],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                    **more,
                )
            )

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_LIMIT
        while not condition():
            for process in self._processes:
                assert process.poll() is None, f"{process.args[0]} ended:\n{self._logs()}"
            assert time.monotonic() < deadline, f"{what} did not come up:\n{self._logs()}"
            time.sleep(0.05)  # polling interval

    def _logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in self.directory.glob("*.out"))

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status < 500
        except OSError:
            return False
        finally:
            connection.close()


class RadosGateway(S3Server):
    """A Ceph cluster of one monitor, one OSD and one gateway."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._mon_port = free_port()

    def _start(self) -> None:
        for part in ("mon", "osd"):
            (self.directory / part).mkdir(parents=True)
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        self._conf.write_text(
            _CEPH_CONF.format(fsid=fsid, directory=self.directory, port=self.port, mon_port=self._mon_port)
        )
        monmap = str(self.directory / "monmap")
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v1:127.0.0.1:{self._mon_port}]", monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self._serve("ceph-mon", "-i", "a", "-f")
        self._command("osd", "new", osd, "0")
        self._command("osd", "crush", "add", "osd.0", "1", "root=default", "host=localhost")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._serve("ceph-osd", "-i", "0", "-f")
        self._wait(lambda: "1 up" in self._command("osd", "stat"), "the OSD")
        self._serve("radosgw", "-n", "client.rgw", "-f")
        self._wait(self._answers, "the gateway")
        self._run(
            *("radosgw-admin", "-n", "client.rgw", "user", "create", "--uid=test", "--display-name=test"),
            *(f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}"),
        )
        self.client.create_bucket(Bucket=BUCKET)

    @property
    def _conf(self) -> Path:
        return self.directory / "ceph.conf"

    def _command(self, *words: str) -> str:
        """Gives the monitor a command. It refuses now and then (EPERM) when it comes before the map it belongs to."""
        for _ in range(20):
            with contextlib.suppress(CommandFailed):
                return self._run("ceph", *words)
        return self._run("ceph", *words)

    def _run(self, program: str, *arguments: str) -> str:
        result = subprocess.run(
            [program, "-c", str(self._conf), *arguments],
            capture_output=True,
            text=True,
            timeout=START_LIMIT,
            check=False,
        )
        if result.returncode:
            raise CommandFailed(f"{program} {arguments}: {result.stdout}{result.stderr}")
        return result.stdout

    def _serve(self, program: str, *arguments: str) -> None:
        self._spawn(program, program, "-c", str(self._conf), *arguments)


class Stored:
    """What is in the bucket, seen by the SDK alone."""

    def __init__(self, server: S3Server, prefix: str) -> None:
        self.client = server.client
        self._prefix = prefix

    def key(self, path: str) -> str:
        return self._prefix + path

    def content(self, path: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=self.key(path))["Body"].read()

    def paths(self) -> list[str]:
        """All objects, by path."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{self._prefix}/")
        return [found["Key"][len(self._prefix) :] for page in pages for found in page.get("Contents", [])]

    def uploads(self) -> list[tuple[str, str]]:
        """Path and id of all open multipart uploads."""
        pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=BUCKET, Prefix=f"{self._prefix}/")
        return [
            (found["Key"][len(self._prefix) :], found["UploadId"])
            for page in pages
            for found in page.get("Uploads", [])
        ]

    def parts(self, path: str) -> list[tuple[int, int]]:
        """Number and size of the parts of the only upload at a path; the largest of those with one number."""
        ((_, upload_id),) = [upload for upload in self.uploads() if upload[0] == path]
        answer = self.client.list_parts(Bucket=BUCKET, Key=self.key(path), UploadId=upload_id)
        parts = sorted((part["PartNumber"], part["Size"]) for part in answer.get("Parts", []))
        return list(dict(parts).items())

    def begin(self, path: str, *parts: tuple[int, bytes]) -> str:
        """An open upload of these parts, by number."""
        upload_id = self.client.create_multipart_upload(Bucket=BUCKET, Key=self.key(path))["UploadId"]
        for number, content in parts:
            self.store_part(path, upload_id, number, content)
        return upload_id

    def put(self, path: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=self.key(path), Body=content)

    def store_part(self, path: str, upload_id: str, number: int, content: bytes) -> None:
        self.client.upload_part(Bucket=BUCKET, Key=self.key(path), UploadId=upload_id, PartNumber=number, Body=content)


def at_once(function: Callable[..., object], *arguments: Iterable[object]) -> None:
    """Calls a function for each of the arguments, several at a time."""
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(function, *arguments))


@functools.cache
def gateway() -> RadosGateway:
    """The gateway of this process, started by whoever asks first, and gone when the process ends."""
    started = RadosGateway(Path(tempfile.mkdtemp(prefix="layerfs-rgw-"))).__enter__()
    atexit.register(started.__exit__)
    return started
