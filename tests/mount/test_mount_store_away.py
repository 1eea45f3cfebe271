"""Stores that go away while they are used, and come back: what is under way waits, and goes on as if nothing had been.

So it is when a gateway is restarted: first nobody listens, and then it asks for patience until it has found itself. All
stores go away at the same time, so that it takes a third of the time.
"""

from __future__ import annotations

import json
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
REFUSED = 5
BUSY = 2

#: The most seconds between two tries, and what a busy machine takes besides.
LATE = 4 + 8

#: Seconds without a word after which a request is given up that is not made again, and all that are.
READ_TIMEOUT = 2
DEADLINE = 3 * READ_TIMEOUT

Payload = Callable[[int], bytes]


@dataclass
class Place:
    """The storage of a registry in a store, and the way to it: a door, and behind it a proxy that can say 503."""

    storage: Storage
    url: str
    door: Door
    proxy: S3Proxy | Relay

    def url_with(self, option: str) -> str:
        return f"{self.url}{'&' if '?' in self.url else '?'}{option}"


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Place]]:
    """An empty registry in each store."""
    with ExitStack() as stack:
        yield [_on_s3(stack), _on_azure(stack, monkeypatch), _on_gcs(stack, monkeypatch)]


def _storage(store: str) -> Storage:
    return Storage.create(open_store(store).root(None))


def _on_s3(stack: ExitStack) -> Place:
    storage = _storage("s3")
    proxy = stack.enter_context(S3Proxy(gateway().endpoint))
    door = stack.enter_context(Door(int(proxy.url.rpartition(":")[2])))
    return Place(storage, f"s3://{BUCKET}/{storage.root}?endpoint_url=http://127.0.0.1:{door.port}", door, proxy)


def _on_azure(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Place:
    storage = _storage("azure")
    proxy = AzureRelay(azurite().port)
    stack.callback(proxy.stop)
    door = stack.enter_context(Door(proxy.port))
    endpoint = f"http://127.0.0.1:{door.port}/{ACCOUNT}"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite().connection_string(endpoint))
    return Place(storage, storage.source, door, proxy)


def _on_gcs(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Place:
    storage = _storage("gcs")
    proxy = gcs_server().proxy
    stack.callback(proxy.heal)
    door = stack.enter_context(Door(proxy.port))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{door.port}")
    return Place(storage, storage.source, door, proxy)


# --- a while ---------------------------------------------------------------------------------------------------------


class UnderWay:
    """Programs in the middle of what they do on a mount."""

    def __init__(self, place: Place, mount: Mount, payload: Payload) -> None:
        self.place = place
        self.content, self.uploaded, self.finished = payload(24 * MEBIBYTE), payload(32 * MEBIBYTE), payload(1000)
        self.layers, self.uploads = mount.path / "a/_layers", mount.path / "a/_uploads"
        layer = self.layers / place.storage.put_layer("a", self.content)
        self.unread = self.layers / place.storage.put_layer("a", b"unread")
        (self.uploads / "small").write_bytes(self.finished)
        assert self.unread.stat().st_size == 6
        self.cat = subprocess.Popen(["cat", layer], stdout=subprocess.PIPE)
        self.cp = subprocess.Popen(["cp", "/dev/stdin", self.uploads / "large"], stdin=subprocess.PIPE)
        self.begun = self.cat.stdout.read(MEBIBYTE)
        self.cp.stdin.write(self.uploaded[: 16 * MEBIBYTE])

    def go_on(self) -> None:
        """The rest, while the store is away."""
        threading.Thread(target=self._feed).start()
        self.mv = subprocess.Popen(["mv", self.uploads / "small", self.layers / digest_of(self.finished)])
        self.killed = subprocess.Popen(["cat", self.unread], stdout=subprocess.DEVNULL)

    def _feed(self) -> None:
        self.cp.stdin.write(self.uploaded[16 * MEBIBYTE :])
        self.cp.stdin.close()

    def check_end(self) -> None:
        """Waits until all have ended, well."""
        assert self.begun + self.cat.communicate()[0] == self.content, self.place.url
        assert (self.cat.wait(), self.cp.wait(), self.mv.wait()) == (0, 0, 0), self.place.url

    def check_stored(self) -> None:
        (stored,) = self.place.storage.uploads("a")
        assert holds(stored / "data", self.uploaded)
        assert (self.layers / digest_of(self.finished)).read_bytes() == self.finished


def test_gateways_that_are_restarted(places: list[Place], mounts: Callable[..., Mount], payload: Payload) -> None:
    """A `cat`, a `cp` and a `mv` in the middle of it end well, with the right bytes; who will not wait is let go."""
    mounted = [mounts(place.url) for place in places]
    all_under_way = [UnderWay(place, mount, payload) for place, mount in zip(places, mounted, strict=True)]
    for place in places:
        place.door.shut()
    went_at = time.monotonic()
    coming_back = threading.Thread(target=come_back_busy, args=(places,))
    coming_back.start()
    for under_way in all_under_way:
        under_way.go_on()
    time.sleep(1)  # so that all are surely waiting
    for under_way in all_under_way:
        under_way.killed.send_signal(signal.SIGINT)
        assert under_way.killed.wait(2) == -signal.SIGINT, under_way.place.url
    for under_way in all_under_way:
        under_way.check_end()
    assert REFUSED + BUSY < time.monotonic() - went_at < REFUSED + BUSY + LATE
    coming_back.join()
    for under_way in all_under_way:
        under_way.check_stored()
    for mount in mounted:
        forgive_refusals(mount)


def come_back_busy(places: list[Place]) -> None:
    time.sleep(REFUSED)  # how long a restart takes
    for place in places:
        place.proxy.fail("refuse", "*", status=503, times=100_000)
        place.door.open()
    time.sleep(BUSY)  # how long it needs to find itself
    for place in places:
        place.proxy.heal()


# --- for good --------------------------------------------------------------------------------------------------------


def test_stores_that_stay_away(places: list[Place], mounts: Callable[..., Mount], payload: Payload) -> None:
    """Who reads or writes is told why, in time; and when they are there again, both can be done."""
    content = payload(MEBIBYTE)
    mounted = []
    for place in places:
        layer = place.storage.put_layer("a", content)
        mount = mounts(place.url_with(f"read_timeout={READ_TIMEOUT}"))
        mounted.append((place, mount, mount.path / "a/_layers" / layer, mount.path / "a/_uploads/layer"))
    for place, _, _, upload in mounted:
        upload.touch()
        place.door.shut()
    children = [
        child
        for _, _, layer, upload in mounted
        for child in (Child(layer.read_bytes), Child(upload.write_bytes, content))
    ]
    outcomes = [child.wait(3 * DEADLINE) for child in children]
    assert {outcome.name for outcome in outcomes} == {"EIO"}
    for place, mount, layer, upload in mounted:
        reasons = refusals(mount)
        assert reasons
        assert all("cannot be reached, or broke the connection" in reason for reason in reasons)
        assert all(2 * READ_TIMEOUT < seconds < DEADLINE + 1.5 for seconds in durations(mount))
        place.door.open()
        wait_until(lambda layer=layer: attempt(layer.read_bytes).value == content, "it can be read")
        upload.write_bytes(content)
        assert upload.read_bytes() == content
        forgive_refusals(mount)


def durations(mount: Mount) -> list[float]:
    """Seconds after which each operation was refused."""
    return [json.loads(line)["duration"] for line in refusals(mount)]
