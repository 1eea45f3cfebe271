"""The real registry and mounts over the same bucket: uploads that go back and forth, and mounts that are killed."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness.commands import append, get_xattr, run, shell, wait_until
from harness.mount import COMMAND, Mount
from harness.object_stores import BUCKET, Stored, gateway
from harness.registry import SIGNING_KEY, ConfiguredRegistry, DockerRegistry
from harness.s3_proxy import S3Proxy
from harness.storage import digest_of, digest_of_file

MEBIBYTE = 1 << 20
NAME = "interop/s3"


class Shared:
    """A prefix in a bucket, with a registry on it, and mounts of it by the command that a user types."""

    def __init__(self, registry: DockerRegistry, prefix: str) -> None:
        self.registry = registry
        self.stored = Stored(gateway(), prefix)
        self.source = f"s3://{BUCKET}/{prefix}?endpoint_url={gateway().endpoint}"


class Mounted:
    """The repository on one of the mounts."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.path = mount.path / NAME
        self.path.mkdir(parents=True, exist_ok=True)

    def upload(self, name: str) -> Path:
        return self.path / "_uploads" / name

    def layer(self, digest: str) -> Path:
        return self.path / "_layers" / digest

    def size(self, name: str) -> int:
        return os.stat(self.upload(name)).st_size

    def finish(self, name: str, data: bytes) -> None:
        run("mv", self.upload(name), self.layer(digest_of(data)))

    def signed_url(self, registry: DockerRegistry, name: str) -> str:
        """The URL to go on over HTTP with an upload that the mount shows."""
        upload = self.upload(name)
        return registry.resume_url(
            NAME,
            get_xattr(upload, "user.layerfs.upload.uuid"),
            offset=os.stat(upload).st_size,
            started_at=get_xattr(upload, "user.layerfs.upload.startedat"),
        )


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """A registry on a prefix of the bucket, and credentials for mounts where the SDK looks for them."""
    prefix = f"tests/{uuid.uuid4()}"
    directory = tmp_path_factory.mktemp("s3")
    config = directory / "config.yml"
    config.write_text(gateway().registry_config(prefix, signing_key=SIGNING_KEY))
    with pytest.MonkeyPatch.context() as patch, ConfiguredRegistry(config, directory) as registry:
        for name, value in gateway().environment.items():
            patch.setenv(name, value)
        yield Shared(registry, prefix)


@pytest.fixture(scope="module")
def common_mount(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount for those who do not kill it."""
    with Mount(shared.source, tmp_path_factory.mktemp("common") / "mnt", "--create") as mount:
        yield mount


@pytest.fixture
def mounted(common_mount: Mount, watchdog: None) -> Iterator[Mounted]:
    """The repository on it."""
    yield Mounted(common_mount)
    common_mount.check_log()


@pytest.fixture
def another(shared: Shared, mounts: Callable[..., Mount]) -> Callable[[], Mounted]:
    """Gives mounts that may be killed."""
    return lambda: Mounted(mounts(shared.source, "--create"))


@pytest.fixture
def registry(shared: Shared) -> DockerRegistry:
    """Debian's docker-registry on the bucket."""
    return shared.registry


def upload_id_of(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


@pytest.mark.parametrize("size", [1000, 17 * MEBIBYTE])
def test_a_layer_that_is_copied_in(
    shared: Shared, mounted: Mounted, registry: DockerRegistry, payload, tmp_path: Path, size: int
) -> None:
    """By `cp` and `mv`; it can be read here, and the registry serves it."""
    data = payload(size)
    (tmp_path / "layer").write_bytes(data)
    run("cp", tmp_path / "layer", mounted.upload("layer"))
    assert mounted.size("layer") == size
    mounted.finish("layer", data)
    assert digest_of_file(mounted.layer(digest_of(data))) == digest_of(data)
    assert registry.serves(NAME, digest_of(data), data)
    assert os.listdir(mounted.path / "_uploads") == []
    assert not [path for path in shared.stored.paths() if "/_uploads/" in path]


def test_a_layer_that_is_pushed(mounted: Mounted, registry: DockerRegistry, payload) -> None:
    """It is on the mount, and can be read at any place."""
    data = payload(11 * MEBIBYTE)
    digest = registry.push(NAME, data)
    wait_until(lambda: mounted.layer(digest).exists(), "the layer on the mount", seconds=5)
    with open(mounted.layer(digest), "rb") as layer:
        for offset in (len(data) - 5, 10 * MEBIBYTE - 1, 0):
            layer.seek(offset)
            assert layer.read(100) == data[offset : offset + 100]
    assert mounted.layer(digest).read_bytes() == data


@pytest.mark.parametrize("finish", ["over HTTP", "by mv"])
@pytest.mark.parametrize("cuts", [(1000, 2000, 3000), (6 * MEBIBYTE, 6 * MEBIBYTE + 1000, 13 * MEBIBYTE)])
def test_back_and_forth(
    mounted: Mounted, registry: DockerRegistry, payload, finish: str, cuts: tuple[int, int, int]
) -> None:
    """Part by `cp`, part by PATCH, part by `>>`, part by PATCH again, and finished by either."""
    first, second, third = cuts
    data = payload(third + 1000)
    append(mounted.upload("layer"), data[:first])
    registry.patch(mounted.signed_url(registry, "layer"), data[first:second])
    wait_until(lambda: mounted.size("layer") == second, "the new size", seconds=5)
    append(mounted.upload("layer"), data[second:third])
    registry.patch(mounted.signed_url(registry, "layer"), data[third:])
    wait_until(lambda: mounted.size("layer") == len(data), "the new size", seconds=5)
    if finish == "by mv":
        mounted.finish("layer", data)
    else:
        assert registry.put(mounted.signed_url(registry, "layer"), digest_of(data)).status == 201
    assert registry.serves(NAME, digest_of(data), data)
    wait_until(lambda: mounted.layer(digest_of(data)).exists(), "the layer on the mount", seconds=5)
    assert digest_of_file(mounted.layer(digest_of(data))) == digest_of(data)


@pytest.mark.parametrize("size", [0, 1000, 11 * MEBIBYTE])
def test_begun_by_the_registry(mounted: Mounted, registry: DockerRegistry, payload, size: int) -> None:
    """It shows under its id, with its size, and goes on and ends here."""
    data = payload(size + 2000)
    url = registry.post(NAME)
    if size:
        url = registry.patch(url, data[:size])
    name = upload_id_of(url)
    wait_until(lambda: name in os.listdir(mounted.path / "_uploads"), "the upload on the mount", seconds=5)
    assert mounted.size(name) == size
    append(mounted.upload(name), data[size:])
    mounted.finish(name, data)
    assert registry.serves(NAME, digest_of(data), data)


@pytest.mark.parametrize("size", [1000, 11 * MEBIBYTE])
def test_killed_here_and_gone_on_with_there(
    another: Callable[[], Mounted], registry: DockerRegistry, payload, size: int
) -> None:
    """What was synced is there for a registry, which finishes it."""
    data = payload(size + 6 * MEBIBYTE)
    mounted = another()
    descriptor = os.open(mounted.upload("layer"), os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, data[:size])
    os.fsync(descriptor)
    url = mounted.signed_url(registry, "layer")
    mounted.mount.kill9()
    with pytest.raises(OSError):
        os.close(descriptor)
    url = registry.patch(url, data[size:])
    assert registry.put(url, digest_of(data)).status == 201
    assert registry.serves(NAME, digest_of(data), data)


def test_killed_here_and_gone_on_with_on_another_mount(
    another: Callable[[], Mounted], registry: DockerRegistry, payload
) -> None:
    """From the size that the upload has; what was synced is in it."""
    data = payload(40 * MEBIBYTE)
    mounted = another()
    descriptor = os.open(mounted.upload("layer"), os.O_WRONLY | os.O_CREAT)
    for start in range(0, 30 * MEBIBYTE, MEBIBYTE):
        os.write(descriptor, data[start : start + MEBIBYTE])
        if start == 20 * MEBIBYTE:
            os.fsync(descriptor)
    mounted.mount.kill9()
    with pytest.raises(OSError):
        os.close(descriptor)
    other = another()
    size = other.size("layer")
    assert 21 * MEBIBYTE <= size <= 30 * MEBIBYTE
    append(other.upload("layer"), data[size:])
    other.finish("layer", data)
    assert registry.serves(NAME, digest_of(data), data)


def test_a_state_of_bytes_that_never_came(mounted: Mounted, registry: DockerRegistry, payload, tmp_path: Path) -> None:
    """A registry dies between a state and its bytes, while the mount has the upload closed; others come then.

    The mount has not seen what was there before, so it has no state of its own to put in the place of the registry's.
    Another registry must not believe that, and serve what was never uploaded.
    """
    begun, theirs, ours = payload(6 * MEBIBYTE), payload(3000), payload(3000)
    url = registry.patch(registry.post(NAME), begun)
    name = upload_id_of(url)
    wait_until(lambda: name in os.listdir(mounted.path / "_uploads"), "the upload on the mount", seconds=5)
    append(mounted.upload(name), b"")
    with S3Proxy(gateway().endpoint) as proxy:
        config = tmp_path / "config.yml"
        config.write_text(registry.config.read_text().replace(gateway().endpoint, proxy.url))
        with ConfiguredRegistry(config, tmp_path) as dying, ThreadPoolExecutor(1) as threads:
            proxy.fail("stall", "UploadPart", times=100)
            answer = threads.submit(dying.patch, url, theirs)
            wait_until(lambda: proxy.counts["UploadPart"], "the registry to store its bytes", seconds=10)
            os.kill(dying.pid, signal.SIGKILL)
            with pytest.raises(OSError):
                answer.result(10)
    assert mounted.size(name) == len(begun)
    append(mounted.upload(name), ours)
    assert registry.put(mounted.signed_url(registry, name), digest_of(begun + theirs)).status == 400
    mounted.finish(name, begun + ours)
    assert registry.serves(NAME, digest_of(begun + ours), begun + ours)


def test_a_wrong_digest_over_http(mounted: Mounted, registry: DockerRegistry, payload) -> None:
    """The registry has completed the multipart upload then; here it still is an upload, and goes on."""
    data = payload(6 * MEBIBYTE)
    append(mounted.upload("layer"), data[:-1000])
    url = mounted.signed_url(registry, "layer")
    assert registry.put(url, digest_of(b"something else")).status == 400
    assert mounted.size("layer") == len(data) - 1000
    append(mounted.upload("layer"), data[-1000:])
    mounted.finish("layer", data)
    assert registry.serves(NAME, digest_of(data), data)


def test_a_wrong_digest_here(mounted: Mounted, registry: DockerRegistry, payload) -> None:
    """EBADMSG; it can be read, written and finished as if nothing had been."""
    data = payload(6 * MEBIBYTE)
    append(mounted.upload("layer"), data[:-1000])
    with mounted.mount.refuses("EBADMSG"):
        assert run("mv", mounted.upload("layer"), mounted.layer(digest_of(b"else")), check=False).returncode == 1
    assert mounted.upload("layer").read_bytes() == data[:-1000]
    append(mounted.upload("layer"), data[-1000:])
    assert mounted.upload("layer").read_bytes() == data
    mounted.finish("layer", data)
    assert registry.serves(NAME, digest_of(data), data)


def test_what_shells_do(shared: Shared, mounted: Mounted, registry: DockerRegistry) -> None:
    """`>`, `>>`, `cat`, `tail` and `rm`, on an upload that is never larger than a few bytes."""
    upload = mounted.upload("notes")
    script = 'echo one > "$1"; echo two >> "$1"; cat "$1"; echo three >> "$1"; tail -n 1 "$1"; cat "$1"'
    assert shell(script, upload).stdout == "one\ntwo\nthree\none\ntwo\nthree\n"
    mounted.finish("notes", b"one\ntwo\nthree\n")
    assert registry.serves(NAME, digest_of(b"one\ntwo\nthree\n"), b"one\ntwo\nthree\n")
    shell('echo one > "$1"; rm "$1"', upload)
    assert os.listdir(mounted.path / "_uploads") == []
    assert not [path for path in shared.stored.paths() if "/_uploads/" in path]


def test_an_image_through_the_tree(mounted: Mounted, registry: DockerRegistry, payload) -> None:
    """A manifest, put and tagged on the mount, of layers that were pushed: the registry serves it by its tag."""
    config, layer = b"{}", payload(1000)
    for data in (config, layer):
        registry.push(NAME, data)
    wait_until(lambda: mounted.layer(digest_of(layer)).exists(), "the layer on the mount", seconds=5)
    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = (
        f'{{"schemaVersion":2,"mediaType":"{media_type}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json",'
        f'"digest":"{digest_of(config)}","size":{len(config)}}},"layers":[{{"mediaType":'
        f'"application/vnd.oci.image.layer.v1.tar","digest":"{digest_of(layer)}","size":{len(layer)}}}]}}'
    ).encode()
    (mounted.path / "_tags" / "v1").write_bytes(manifest)
    assert registry.get_manifest(NAME, "v1", media_type).body == manifest
    run("ln", "-s", "v1", mounted.path / "_tags" / "latest")
    assert registry.get_manifest(NAME, "latest", media_type).body == manifest
    assert os.readlink(mounted.path / "_tags" / "latest") == f"../_manifests/{digest_of(manifest)}"
    assert (mounted.path / "_tags" / "v1").read_bytes() == manifest
    registry.garbage_collect()


def test_an_empty_registry_that_was_begun_by_a_mount(
    tmp_path: Path, mounts: Callable[..., Mount], payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry takes what marks it for nothing: it lists, serves and collects garbage as ever."""
    prefix = f"tests/{uuid.uuid4()}"
    for name, value in gateway().environment.items():
        monkeypatch.setenv(name, value)
    source = f"s3://{BUCKET}/{prefix}?endpoint_url={gateway().endpoint}"
    mounts(source, "--create").stop()
    assert Stored(gateway(), prefix).paths() == ["/docker/registry/v2/repositories/.layerfs"]
    config = tmp_path / "config.yml"
    config.write_text(gateway().registry_config(prefix, signing_key=SIGNING_KEY))
    data = payload(1000)
    with ConfiguredRegistry(config, tmp_path) as registry:
        assert json.loads(registry.request("GET", "/v2/_catalog").body) == {"repositories": []}
        digest = registry.push(NAME, data)
        assert json.loads(registry.request("GET", "/v2/_catalog").body) == {"repositories": [NAME]}
        assert registry.serves(NAME, digest, data)
        assert "marking blob" not in registry.garbage_collect()
    assert (mounts(source).path / NAME / "_layers" / digest).read_bytes() == data
    assert run(COMMAND, "check", source).returncode == 0
