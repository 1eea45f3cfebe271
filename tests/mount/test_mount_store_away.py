"""A store that goes away while it is used, and comes back: what is under way waits, and goes on as if nothing had been.

So it is when a gateway is restarted: first nobody listens, and then it asks for patience until it has found itself.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from harness.azurite import ACCOUNT, AzureRelay, azurite
from harness.bounded import Child, attempt
from harness.commands import wait_until
from harness.door import Door
from harness.gcs_server import gcs_server
from harness.mount import Mount
from harness.object_stores import BUCKET, gateway
from harness.relay import Relay
from harness.s3_proxy import S3Proxy
from harness.storage import Storage, digest_of, holds
from harness.stores import open_store
from harness.tolerance import forgive_refusals, refusals

MEBIBYTE = 1 << 20

#: Seconds for which nobody listens, and then is too busy.
REFUSED = 6
BUSY = 2

#: The most seconds between two tries, and what a busy machine takes besides.
LATE = 4 + 4

#: Seconds without a word after which a request is given up that is not made again, and all that are.
READ_TIMEOUT = 1
DEADLINE = 3 * READ_TIMEOUT


@dataclass
class Place:
    """The storage of a registry in a store, and the way to it: a door, and behind it a proxy that can say 503."""

    storage: Storage
    url: str
    door: Door
    proxy: S3Proxy | Relay


@pytest.fixture(params=["s3", "azure", "gcs"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """An empty registry in each store."""
    store = open_store(request.param)
    storage = Storage.create(store.root(None))
    with ExitStack() as stack:
        if request.param == "s3":
            proxy = stack.enter_context(S3Proxy(gateway().endpoint))
            door = stack.enter_context(Door(int(proxy.url.rpartition(":")[2])))
            url = f"s3://{BUCKET}/{storage.root}?endpoint_url=http://127.0.0.1:{door.port}"
        elif request.param == "azure":
            proxy = AzureRelay(azurite().port)
            stack.callback(proxy.stop)
            door = stack.enter_context(Door(proxy.port))
            endpoint = f"http://127.0.0.1:{door.port}/{ACCOUNT}"
            monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite().connection_string(endpoint))
            url = storage.source
        else:
            proxy = gcs_server().proxy
            stack.callback(proxy.heal)
            door = stack.enter_context(Door(proxy.port))
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{door.port}")
            url = storage.source
        yield Place(storage, url, door, proxy)


def feed(process: subprocess.Popen[bytes], content: bytes) -> None:
    process.stdin.write(content)
    process.stdin.close()


def test_a_gateway_that_is_restarted(place: Place, mounts: Callable[..., Mount], payload) -> None:
    """A `cat`, a `cp` and a `mv` in the middle of it end well, with the right bytes; who will not wait is let go."""
    content, uploaded, finished = payload(40 * MEBIBYTE), payload(48 * MEBIBYTE), payload(1000)
    digest, other = place.storage.put_layer("a", content), place.storage.put_layer("a", b"other")
    mount = mounts(place.url)
    layers, upload = mount.path / "a/_layers", mount.path / "a/_uploads/layer"
    assert (layers / other).stat().st_size == 5
    (mount.path / "a/_uploads/small").write_bytes(finished)
    with (
        subprocess.Popen(["cat", layers / digest], stdout=subprocess.PIPE) as cat,
        subprocess.Popen(["cp", "/dev/stdin", upload], stdin=subprocess.PIPE) as cp,
        subprocess.Popen(["sh", "-c", f"read _; exec cat '{layers / other}'"], stdin=subprocess.PIPE) as killed,
    ):
        begun = cat.stdout.read(MEBIBYTE)
        cp.stdin.write(uploaded[: 24 * MEBIBYTE])
        place.door.shut()
        went_at = time.monotonic()
        writer = threading.Thread(target=feed, args=(cp, uploaded[24 * MEBIBYTE :]))
        writer.start()
        come_back = threading.Thread(target=come_back_busy, args=(place,))
        come_back.start()
        feed(killed, b"\n")
        mv = subprocess.Popen(["mv", mount.path / "a/_uploads/small", layers / digest_of(finished)])
        with pytest.raises(subprocess.TimeoutExpired):
            killed.wait(1)
        killed.send_signal(signal.SIGINT)
        assert killed.wait(2) == -signal.SIGINT
        assert begun + cat.stdout.read() == content
        writer.join()
        assert (cat.wait(), cp.wait(), mv.wait()) == (0, 0, 0)
        came_back_after = time.monotonic() - went_at
        come_back.join()
    assert REFUSED + BUSY < came_back_after < REFUSED + BUSY + LATE
    (stored,) = place.storage.uploads("a")
    assert holds(stored / "data", uploaded)
    assert (layers / digest_of(finished)).read_bytes() == finished
    forgive_refusals(mount)


def test_a_store_that_stays_away(place: Place, mounts: Callable[..., Mount], payload) -> None:
    """Who reads or writes is told why, in time; and when it is there again, both can be done."""
    content = payload(MEBIBYTE)
    digest = place.storage.put_layer("a", content)
    mount = mounts(f"{place.url}{'&' if '?' in place.url else '?'}read_timeout={READ_TIMEOUT}")
    layer, upload = mount.path / "a/_layers" / digest, mount.path / "a/_uploads/layer"
    upload.touch()
    place.door.shut()
    began_at = time.monotonic()
    reader, writer = Child(layer.read_bytes), Child(upload.write_bytes, content)
    assert {reader.wait(2 * DEADLINE).name, writer.wait(2 * DEADLINE).name} == {"EIO"}
    assert 2 * READ_TIMEOUT < time.monotonic() - began_at < DEADLINE + 1.5
    reasons = refusals(mount)
    assert reasons
    assert all("cannot be reached, or broke the connection" in reason for reason in reasons)
    place.door.open()
    wait_until(lambda: attempt(layer.read_bytes).value == content, "it can be read")
    upload.write_bytes(content)
    assert upload.read_bytes() == content
    forgive_refusals(mount)


def come_back_busy(place: Place) -> None:
    time.sleep(REFUSED)  # how long a restart takes
    place.proxy.fail("refuse", "*", status=503, times=100_000)
    place.door.open()
    time.sleep(BUSY)  # how long it needs to find itself
    place.proxy.heal()
