"""OpenStack Swift, from Debian's packages, spoken to by its `s3api`: the server of S3 that knows no conditions for what
is put, and wants an MD5 that the SDK does not send with what is to be deleted.

One of each of its servers, one copy of everything, and no authentication but a user in the configuration.
"""

from __future__ import annotations

import atexit
import functools
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from harness.fixture import free_port
from harness.object_stores import BUCKET, SECRET_KEY, START_LIMIT, S3Server

#: Where everything that has to be the same on all machines of a cluster is said; from Debian's package. It is read from
#: there whatever the servers are told.
_COMMON: Final = Path("/etc/swift/swift.conf")

_STORAGE: Final = ("account", "container", "object")

_STORAGE_CONF: Final = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
devices = {directory}/devices
mount_check = false
swift_dir = {directory}
user = {user}
workers = 0
log_address = /nonexistent
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""

#: As many parts as S3 allows, not the thousand that are usual.
_PROXY_CONF: Final = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {directory}
user = {user}
workers = 0
log_address = /nonexistent
[pipeline:main]
pipeline = catch_errors gatekeeper proxy-logging cache listing_formats bulk s3api tempauth copy slo symlink proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret_key} .admin
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
max_upload_part_num = 10000
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached_port}
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:symlink]
use = egg:swift#symlink
[filter:proxy-logging]
use = egg:swift#proxy_logging
"""


class Swift(S3Server):
    """A proxy with `s3api`, an account, a container and an object server, and memcached."""

    access_key = "test:tester"

    def _start(self) -> None:
        assert _COMMON.exists(), f"{_COMMON} is missing: run scripts/setup --test"
        (self.directory / "devices/d1").mkdir(parents=True)
        memcached_port = free_port()
        self._spawn("memcached", "memcached", "-u", "root", "-l", "127.0.0.1", "-p", str(memcached_port), "-m", "16")
        for kind in _STORAGE:
            port = free_port()
            self._make_ring(kind, port)
            self._serve(f"{kind}-server", _STORAGE_CONF, kind=kind, port=port)
        self._serve("proxy-server", _PROXY_CONF, secret_key=SECRET_KEY, port=self.port, memcached_port=memcached_port)
        self._wait(self._answers, "Swift")
        self.client.create_bucket(Bucket=BUCKET)

    def _make_ring(self, kind: str, port: int) -> None:
        builder = str(self.directory / f"{kind}.builder")
        # 16 partitions, one copy, and no time before something may be moved.
        for words in (["create", "4", "1", "0"], ["add", f"r1z1-127.0.0.1:{port}/d1", "1"], ["rebalance"]):
            command = ["swift-ring-builder", builder, *words]
            subprocess.run(command, check=True, capture_output=True, timeout=START_LIMIT)

    def _serve(self, program: str, conf: str, **values: object) -> None:
        path = self.directory / f"{program}.conf"
        path.write_text(conf.format(directory=self.directory, user=_user(), **values))
        self._spawn(program, f"swift-{program}", str(path))


def _user() -> str:
    """Who the servers run as: nobody else than the tests."""
    return "root" if os.geteuid() == 0 else os.environ["USER"]


@functools.cache
def swift() -> Swift:
    """The server of this process, started by whoever asks first, and gone when the process ends."""
    # Its objects have their names and times in extended attributes, which not every tmpfs has.
    started = Swift(Path(tempfile.mkdtemp(prefix="layerfs-swift-"))).__enter__()
    atexit.register(started.__exit__)
    return started
