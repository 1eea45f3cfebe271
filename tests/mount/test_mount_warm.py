"""`layerfs warm`: fills the cache that mounts read from with what images need."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from harness.mount import COMMAND, Mount
from harness.remote import RemoteRegistry, blob_key, link_key
from harness.storage import digest_of

MIB = 1 << 20

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


class LocalRegistry:
    """The same on this machine, which takes less time."""

    def __init__(self, root: Path) -> None:
        self.url = str(root)
        self._root = root
        self.put_all([("docker/registry/v2/repositories/.keep", b"")])

    def put_all(self, objects: Iterable[tuple[str, bytes]]) -> None:
        for key, content in objects:
            path = self._root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def put_blob(self, content: bytes) -> str:
        digest = digest_of(content)
        self.put_all([(blob_key(digest), content)])
        return digest

    def put_layer(self, repository: str, content: bytes) -> str:
        digest = self.put_blob(content)
        self.put_all([(link_key(repository, digest), digest.encode())])
        return digest


@pytest.fixture
def local(tmp_path: Path) -> LocalRegistry:
    """An empty registry on this machine."""
    return LocalRegistry(tmp_path / "storage")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class Image:
    """An image of two layers in repository `a`."""

    def __init__(self, remote: RemoteRegistry | LocalRegistry, seed: int, *, size: int = 2 * MIB) -> None:
        numbers = random.Random(seed)
        self.layers = [numbers.randbytes(size), numbers.randbytes(1000)]
        self.config = json.dumps({"architecture": "amd64", "os": "linux", "seed": seed}).encode()
        self.digests = [remote.put_layer("a", content) for content in (self.config, *self.layers)]
        contents = zip(self.digests, (self.config, *self.layers), (CONFIG, LAYER, LAYER), strict=True)
        described = [{"mediaType": kind, "digest": digest, "size": len(content)} for digest, content, kind in contents]
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described[0], "layers": described[1:]}
        self.manifest = json.dumps(document).encode()
        self.digest = put_manifest(remote, self.manifest)
        self.all = {self.digest, *self.digests}


def put_manifest(remote: RemoteRegistry | LocalRegistry, content: bytes, *tags: str) -> str:
    digest = remote.put_blob(content)
    directory = "docker/registry/v2/repositories/a/_manifests"
    remote.put_all(
        [
            (f"{directory}/revisions/{digest.replace(':', '/')}/link", digest.encode()),
            *((f"{directory}/tags/{tag}/current/link", digest.encode()) for tag in tags),
        ]
    )
    return digest


def tag(remote: RemoteRegistry | LocalRegistry, name: str, digest: str) -> None:
    remote.put_all([(f"docker/registry/v2/repositories/a/_manifests/tags/{name}/current/link", digest.encode())])


def warm(
    remote: RemoteRegistry | LocalRegistry, cache: Path, *references: str, options: tuple[str, ...] = ()
) -> tuple[int, list, str]:
    """The exit code, what was printed as JSON, and standard error."""
    result = subprocess.run(
        [COMMAND, "warm", remote.url, *references, "--cache-dir", cache, "--format", "json", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, [json.loads(line) for line in result.stdout.splitlines()], result.stderr


def states(lines: list[dict]) -> dict[str, str]:
    return {line["digest"]: line["state"] for line in lines if "digest" in line}


def kept(cache: Path) -> set[str]:
    return {path.name.replace("-", ":") for path in (cache / "blobs").iterdir()}


def test_an_image_is_fetched_and_read_without_a_request(
    remote: RemoteRegistry, cache: Path, mounts: Callable[..., Mount]
) -> None:
    """Manifest, configuration and layers; a mount with the cache asks for none of their bytes."""
    image = Image(remote, 1)
    tag(remote, "v1", image.digest)
    code, lines, errors = warm(remote, cache, "a:v1")
    assert (code, errors) == (0, "")
    assert states(lines) == dict.fromkeys(image.all, "fetched")
    total = len(image.manifest) + len(image.config) + sum(map(len, image.layers))
    summary = {"fetched": 4, "present": 0, "failed": 0, "bytesFetched": total, "bytesPresent": 0}
    assert lines[-1] == {"summary": summary}
    assert kept(cache) == image.all
    mount = mounts(remote.url, "--cache-dir", str(cache))
    remote.proxy.forget()
    for digest, content in zip(image.digests[1:], image.layers, strict=True):
        assert (mount.path / "a/_layers" / digest).read_bytes() == content
        assert remote.gets(digest) == []
    code, lines, _ = warm(remote, cache, "a:v1")
    assert (code, set(states(lines).values())) == (0, {"present"})


def test_what_a_reference_means(local: LocalRegistry, cache: Path) -> None:
    """A tag, a digest of a manifest or of a layer, all tags of a repository, and all that an index leads to."""
    one, two, three = (Image(local, number, size=1000) for number in range(3))
    manifests = [{"mediaType": MANIFEST, "digest": image.digest, "size": len(image.manifest)} for image in (two, three)]
    absent = {"mediaType": MANIFEST, "digest": "sha256:" + "0" * 64, "size": 10}
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*manifests, absent]}
    index = put_manifest(local, json.dumps(document).encode(), "index")
    tag(local, "one", one.digest)
    for number, (references, expected) in enumerate(
        [
            (["a:one"], one.all),
            ([f"a@{one.digest}"], one.all),
            ([f"a@{one.digests[1]}"], {one.digests[1]}),
            (["a:index"], {index} | two.all | three.all),
            (["a:one", f"a@{two.digest}"], one.all | two.all),
            (["a"], {index} | one.all | two.all | three.all),
        ]
    ):
        directory = cache.with_name(f"cache-{number}")
        code, lines, errors = warm(local, directory, *references)
        assert (code, errors) == (0, ""), references
        assert kept(directory) == set(states(lines)) == expected


def test_what_is_missing_or_damaged(remote: RemoteRegistry, cache: Path) -> None:
    """Is said, with its digests; all the rest is fetched, and the exit code tells."""
    image = Image(remote, 1)
    tag(remote, "v1", image.digest)
    missing, damaged = image.digests[2], image.digests[1]
    remote.delete(blob_key(missing))
    wrong = bytes([image.layers[0][0] ^ 1]) + image.layers[0][1:]
    remote.put_all([(blob_key(damaged), wrong)])
    code, lines, _ = warm(remote, cache, "a:v1")
    assert code == 32
    assert {digest for digest, state in states(lines).items() if state == "failed"} == {missing, damaged}
    assert kept(cache) == image.all - {missing, damaged}
    reasons = {line["digest"]: line.get("error", "") for line in lines if "digest" in line}
    assert missing in reasons[missing]
    assert damaged in reasons[damaged]
    assert "is damaged" in reasons[damaged]


def test_what_is_not_there(local: LocalRegistry, cache: Path) -> None:
    """An unknown repository, tag or digest, a cache that is too small, no reference at all: exit code 1 and a line."""
    image = Image(local, 1)
    tag(local, "v1", image.digest)
    for references, options, said in [
        (["b"], (), "unknown repository 'b'"),
        (["a:v2"], (), "v1"),
        (["a@sha256:" + "0" * 64], (), "0000"),
        (["a:v1", "b"], (), "'b'"),
        (["A:B:C"], (), "A:B:C"),
        (["a:v1"], ("--cache-size", "1M"), "--cache-size"),
        (["a:v1"], ("--cache-size", "lots"), "lots"),
        ([], (), "REPO"),
    ]:
        code, lines, errors = warm(local, cache, *references, options=options)
        assert (code, lines) == (1, []), references
        assert said in errors
        assert len(errors.splitlines()) == 1


def test_an_interrupted_command_goes_on(remote: RemoteRegistry, cache: Path) -> None:
    """`^C` ends it with exit code 8; what was fetched is not fetched again."""
    content = random.Random(5).randbytes(24 * MIB)
    digest = remote.put_layer("a", content)
    # The second half is not given out.
    remote.proxy.fail("stall", "GetObject", times=100, after=6, suffix=blob_key(digest))
    command = [COMMAND, "warm", remote.url, f"a@{digest}", "--cache-dir", cache]
    warming = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while sum(path.stat().st_size for path in cache.glob("partial/*")) < 6 * MIB:
        assert time.monotonic() < deadline, "nothing was fetched"
        time.sleep(0.02)  # polling interval
    os.kill(warming.pid, signal.SIGINT)
    assert warming.wait(10) == 8
    assert "goes on" in warming.communicate()[1]
    remote.proxy.heal()
    there = sum(path.stat().st_size for path in cache.glob("partial/*"))
    assert there >= 6 * MIB
    remote.proxy.forget()
    code, lines, errors = warm(remote, cache, f"a@{digest}")
    assert (code, errors, states(lines)) == (0, "", {digest: "fetched"})
    assert sum(each.received for each in remote.gets(digest)) <= len(content) - there + MIB


def test_two_at_a_time(remote: RemoteRegistry, cache: Path) -> None:
    """One waits for what the other is fetching, and nothing is fetched twice."""
    image = Image(remote, 1, size=12 * MIB)
    tag(remote, "v1", image.digest)
    remote.proxy.latency = 0.02
    command = [COMMAND, "warm", remote.url, "a:v1", "--cache-dir", cache, "--format", "json"]
    commands = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for each in commands:
        each.communicate()
        assert each.returncode == 0
    assert kept(cache) == image.all
    assert sum(each.received for each in remote.gets(image.digests[1])) <= 1.1 * len(image.layers[0])


def test_the_table(local: LocalRegistry, cache: Path) -> None:
    """A line for each blob and one for all, and nothing on standard error that is no terminal."""
    image = Image(local, 1, size=1000)
    tag(local, "v1", image.digest)
    result = subprocess.run(
        [COMMAND, "warm", local.url, "a:v1", "--cache-dir", cache], capture_output=True, text=True, check=True
    )
    *lines, summary = result.stdout.splitlines()
    assert {line.split()[1] for line in lines} == image.all
    assert {line.split()[0] for line in lines} == {"fetched"}
    assert summary.startswith("4 fetched (")
    assert result.stderr == ""
