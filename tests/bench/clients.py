"""`skopeo copy` of an image out of `_oci` and into it, beside a plain directory and a registry over HTTP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from harness.clients import COPY
from harness.clients_layouts import describe_manifest, index_of, tagged
from harness.images import OCI_CONFIG, OCI_IMAGE, OCI_LAYER, encode
from harness.registry import DockerRegistry
from harness.storage import Storage, digest_of

from tests.bench import measure
from tests.bench.contenders import LAYERFS
from tests.bench.data import Data, remove
from tests.bench.measure import MIB
from tests.bench.results import RATE, Against, Row
from tests.bench.workloads import REGISTRY, Bench, Workload

IMAGE = "bench/image"

#: The same image as a layout in a directory.
PLAIN = "plain layout"

_CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'


class _Prepared:
    """An image of the 32 layers: in the storage, and beside it as a layout whose blobs are the very same files."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self.plain = data.directory / "layout"
        layers = [
            {"mediaType": OCI_LAYER, "digest": digest, "size": data.storage.blob(digest).stat().st_size}
            for digest in data.parts
        ]
        config = {"mediaType": OCI_CONFIG, "digest": digest_of(_CONFIG), "size": len(_CONFIG)}
        self.manifest = encode({"schemaVersion": 2, "mediaType": OCI_IMAGE, "config": config, "layers": layers})
        self.size = sum(layer["size"] for layer in layers)
        if not self.plain.exists():
            self._store(data.storage)
            self._make_layout(data.storage)

    @property
    def blobs(self) -> list[Path]:
        """The stored files."""
        return [self._data.storage.blob(digest) for digest in self._data.parts]

    def _store(self, storage: Storage) -> None:
        """As a registry has it after a push."""
        digest = storage.put_blob(self.manifest)
        for blob in (*self._data.parts, storage.put_blob(_CONFIG)):
            storage.put_link(IMAGE, blob)
        manifests = storage.make_repository(IMAGE) / "_manifests"
        for place in (f"revisions/sha256/{digest[7:]}", f"tags/v1/index/sha256/{digest[7:]}", "tags/v1/current"):
            (manifests / place).mkdir(parents=True)
            (manifests / place / "link").write_text(digest)

    def _make_layout(self, storage: Storage) -> None:
        blobs = self.plain / "blobs/sha256"
        blobs.mkdir(parents=True)
        for digest in (*self._data.parts, digest_of(_CONFIG), digest_of(self.manifest)):
            os.link(storage.blob(digest), blobs / digest[7:])
        (self.plain / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        (self.plain / "index.json").write_bytes(index_of(tagged(describe_manifest(self.manifest), "v1")))


def _turns(number: int) -> Sequence[str]:
    """Who is measured, beginning with another one in every round."""
    names = [LAYERFS, PLAIN, REGISTRY]
    return [*names[number % 3 :], *names[: number % 3]]


def _out() -> Workload:
    row = Row("skopeo copy, from", RATE, [Against(PLAIN), Against(REGISTRY)])

    def one_round(bench: Bench, number: int) -> None:
        prepared = _Prepared(bench.data)
        for name in _turns(number):
            measure.warm(*prepared.blobs)
            copy = bench.data.directory / "copied"
            row.add(name, prepared.size / MIB / _copy_from(bench, prepared, name, copy))
            if digest_of((copy / "manifest.json").read_bytes()) != digest_of(prepared.manifest):
                raise RuntimeError(f"skopeo has copied another image from {name}")
            remove(copy)

    return Workload("skopeo-from", [row], one_round, needs=["skopeo", "docker-registry"])


def _copy_from(bench: Bench, prepared: _Prepared, name: str, copy: Path) -> float:
    target = f"dir:{copy}"
    if name == PLAIN:
        return measure.seconds(*COPY, f"oci:{prepared.plain}:v1", target)
    if name == LAYERFS:
        with bench.layerfs.served(bench.data.storage) as served:
            return measure.seconds(*COPY, f"oci:{served.root / IMAGE / '_oci'}:v1", target)
    with DockerRegistry(bench.data.storage.root, bench.data.directory / "registry") as registry:
        return measure.seconds(*COPY, f"docker://{registry.host}/{IMAGE}:v1", target)


def _into() -> Workload:
    row = Row("skopeo copy, to", RATE, [Against(PLAIN), Against(REGISTRY)])

    def one_round(bench: Bench, number: int) -> None:
        prepared = _Prepared(bench.data)
        for name in _turns(number):
            measure.warm(*prepared.blobs)
            row.add(name, prepared.size / MIB / _copy_to(bench, prepared, name))

    return Workload("skopeo-to", [row], one_round, needs=["skopeo", "docker-registry"])


def _copy_to(bench: Bench, prepared: _Prepared, name: str) -> float:
    """Checks that the image has arrived, and takes it away again."""
    source = f"oci:{prepared.plain}:v1"
    target = bench.data.directory / "pushed"
    if name == PLAIN:
        taken = measure.seconds(*COPY, source, f"oci:{target}:v1")
        arrived = target / "blobs/sha256" / digest_of(prepared.manifest)[7:]
    else:
        storage = Storage.create(target)
        taken = _push(bench, storage, source, name)
        arrived = storage.repository(IMAGE) / "_manifests/tags/v1/current/link"
    if not arrived.is_file():
        raise RuntimeError(f"the image has not arrived at {name}")
    remove(target)
    return taken


def _push(bench: Bench, storage: Storage, source: str, name: str) -> float:
    if name == LAYERFS:
        with bench.layerfs.served(storage) as served:
            (served.root / IMAGE).mkdir(parents=True)
            return measure.seconds(*COPY, source, f"oci:{served.root / IMAGE / '_oci'}:v1")
    with DockerRegistry(storage.root, bench.data.directory / "registry") as registry:
        return measure.seconds(*COPY, source, f"docker://{registry.host}/{IMAGE}:v1")


def client_workloads() -> list[Workload]:
    """What clients are measured with, with empty rows."""
    return [_out(), _into()]
