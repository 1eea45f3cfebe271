"""One upload, two mounts and a registry, any order of events: beside a plain `bytes` of what was acknowledged.

What `fsync`, `close` or a 202 has said to be stored is there, in order, for all three; what was refused is not; and
nothing but the true digest is taken, by any of them.
"""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.commands import get_xattr, wait_until
from harness.mount import Mount
from harness.object_stores import BUCKET, gateway
from harness.registry import SIGNING_KEY, ConfiguredRegistry, DockerRegistry
from harness.storage import Storage, digest_of

MEBIBYTE = 1 << 20
NAME = "interop/model"


class Model:
    """The upload called "layer", and what must be in it."""

    def __init__(self, mounts: list[Mount], registry: DockerRegistry, sizes: list[int], seed: int) -> None:
        self.keeps_objects = isinstance(registry, ConfiguredRegistry)
        self.mounts = mounts
        self.registry = registry
        self.sizes = sizes
        self.random = random.Random(seed)
        self.content = b""
        #: A descriptor that stays open, and the content that was there when it was last right.
        self.held: tuple[int, bytes] | None = None
        #: Where a wrong digest leaves an object: registries do not go on with that, though they leave it themselves.
        self.is_object = False
        self.done: list[str] = []

    @property
    def mount(self) -> Mount:
        return self.random.choice(self.mounts)

    def upload(self, mount: Mount) -> Path:
        return mount.path / NAME / "_uploads/layer"

    def piece(self) -> bytes:
        return self.random.randbytes(self.random.choice(self.sizes))

    def step(self) -> None:
        """Something happens, and then all agree."""
        steps = [self.append] * 3 + [self.patch] * 3 + [self.hold, self.write_held, self.read]
        steps += [self.let_go, self.open_and_close, self.finish_wrongly, self.put_wrongly]
        step = self.random.choice(steps)
        self.done.append(step.__name__)
        step()
        # Who has it open sees what he has written to it.
        for mount in self.mounts[self.held is not None :]:
            wait_until(lambda mount=mount: self.size(mount) == len(self.content), f"the size, {self.done}", seconds=5)

    def size(self, mount: Mount) -> int:
        return os.stat(self.upload(mount)).st_size

    def append(self, content: bytes | None = None) -> None:
        """A program on one of the mounts appends; while another on the same mount has it open it may not."""
        content = self.piece() if content is None else content
        try:
            descriptor = os.open(self.upload(self.mount), os.O_WRONLY | os.O_APPEND)
        except OSError:
            assert self.held is not None, self.done
            return
        try:
            written = 0
            while written < len(content):
                written += os.write(descriptor, content[written:])
        finally:
            os.close(descriptor)
        self.took(content)

    def took(self, content: bytes) -> None:
        self.content += content
        self.is_object = self.is_object and not content

    def open_and_close(self) -> None:
        self.append(b"")

    def url(self) -> str:
        upload = self.upload(self.mounts[0])
        identifier, started_at = (get_xattr(upload, f"user.layerfs.upload.{each}") for each in ("uuid", "startedat"))
        return self.registry.resume_url(NAME, identifier, offset=len(self.content), started_at=started_at)

    def patch(self) -> None:
        """The registry appends."""
        if self.is_object:
            return
        content = self.piece()
        self.registry.patch(self.url(), content)
        self.content += content

    def hold(self) -> None:
        if self.held is None:
            self.held = os.open(self.upload(self.mounts[0]), os.O_WRONLY | os.O_APPEND), self.content

    def write_held(self) -> None:
        """Whoever kept it open while others wrote is told so before his bytes count."""
        if self.held is None:
            return
        descriptor, seen = self.held
        content = self.piece()
        try:
            os.write(descriptor, content)
            os.fsync(descriptor)
        except OSError:
            assert seen != self.content, self.done
            self.let_go()
            return
        assert seen == self.content, self.done
        self.took(content)
        self.held = descriptor, self.content

    def let_go(self) -> None:
        if self.held is None:
            return
        descriptor, seen = self.held
        self.held = None
        try:
            os.close(descriptor)
        except OSError:
            assert seen != self.content, self.done

    def read(self) -> None:
        """Not on the mount that writes: what that has open is its own view."""
        assert self.upload(self.mounts[1]).read_bytes() == self.content, self.done

    def finish_wrongly(self) -> None:
        mount, digest = self.mount, digest_of(self.content + b"!")
        with pytest.raises(OSError):
            os.rename(self.upload(mount), mount.path / NAME / "_layers" / digest)
        self.is_object = self.keeps_objects

    @property
    def registry_can_end(self) -> bool:
        """On S3 it cannot complete an upload of nothing, either."""
        return not self.is_object and bool(self.content or not self.keeps_objects)

    def put_wrongly(self) -> None:
        if not self.registry_can_end:
            return
        assert self.registry.put(self.url(), digest_of(self.content + b"!")).status == 400, self.done
        self.is_object = self.keeps_objects

    def finish(self) -> None:
        """By one of them; all of them have the layer then."""
        self.let_go()
        digest, mount = digest_of(self.content), self.mount
        if self.random.random() < 0.5 and self.registry_can_end:
            assert self.registry.put(self.url(), digest).status == 201, self.done
        else:
            os.rename(self.upload(mount), mount.path / NAME / "_layers" / digest)
        assert self.registry.serves(NAME, digest, self.content), self.done
        for mount in self.mounts:
            layer = mount.path / NAME / "_layers" / digest
            wait_until(layer.exists, f"the layer, {self.done}", seconds=5)
            assert layer.read_bytes() == self.content, self.done


@pytest.fixture(params=["local", "s3"])
def model(
    request: pytest.FixtureRequest, tmp_path: Path, mounts: Callable[..., Mount], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int], Model]]:
    """Gives models that have a storage to themselves, in sizes that matter to it."""
    if request.param == "local":
        source, sizes = str(Storage.create(tmp_path / "storage").root), [1, 63, 64, 4095, 4096, 4097, 100_000]
        registry = DockerRegistry(tmp_path / "storage", tmp_path / "registry")
    else:
        prefix, sizes = f"tests/{uuid.uuid4()}", [1, 1000, MEBIBYTE, 5 * MEBIBYTE, 6 * MEBIBYTE, 11 * MEBIBYTE]
        source = f"s3://{BUCKET}/{prefix}?endpoint_url={gateway().endpoint}"
        for name, value in gateway().environment.items():
            monkeypatch.setenv(name, value)
        config = tmp_path / "config.yml"
        config.write_text(gateway().registry_config(prefix, signing_key=SIGNING_KEY))
        registry = ConfiguredRegistry(config, tmp_path)
    with registry:
        pair = [mounts(source, "--create", "--metadata-ttl", "0.1") for _ in range(2)]
        for mount in pair:
            # On S3 an empty repository is known to nobody else.
            (mount.path / NAME).mkdir(parents=True, exist_ok=True)
        yield lambda seed: Model(pair, registry, sizes, seed)
        for mount in pair:
            for level in ("INFO", "WARNING"):
                mount.declare(level)


def run_model(model: Model, steps: int) -> None:
    model.upload(model.mounts[0]).write_bytes(b"")
    wait_until(model.upload(model.mounts[1]).exists, "the upload", seconds=5)
    for _ in range(steps):
        model.step()
    model.finish()


@pytest.mark.parametrize("seed", [1, 2])
def test_what_was_acknowledged_is_there(model: Callable[[int], Model], seed: int) -> None:
    """Whoever has taken it, whoever is asked."""
    run_model(model(seed), 25)


@pytest.mark.soak
def test_what_was_acknowledged_is_there_at_length(model: Callable[[int], Model]) -> None:
    """Many uploads, one after the other."""
    for seed in range(100, 120):
        run_model(model(seed), 30)
