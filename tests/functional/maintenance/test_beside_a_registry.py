"""check and purge-uploads on storage that a real registry is using."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.commands import run
from harness.images import OCI_IMAGE, encode, oci_image
from harness.mount import COMMAND
from harness.registry import DockerRegistry
from harness.storage import Storage, digest_of


@pytest.fixture
def served(storage: Storage, tmp_path: Path) -> Iterator[DockerRegistry]:
    """A registry on an empty storage."""
    with DockerRegistry(storage.root, tmp_path / "registry") as registry:
        yield registry


def push_image(registry: DockerRegistry, name: str, seed: bytes, tag: str) -> str:
    """Pushes an image of one layer as clients do; returns the manifest's digest."""
    config, layer = b'{"config": "%s"}' % seed, seed * 5000
    for blob in (config, layer):
        registry.push(name, blob)
    manifest = encode(oci_image(config, [layer]))
    answer = registry.request("PUT", f"/v2/{name}/manifests/{tag}", manifest, Content_Type=OCI_IMAGE)
    assert answer.status == 201, answer
    return digest_of(manifest)


def check(storage: Storage) -> subprocess.CompletedProcess[str]:
    return run(COMMAND, "check", "--deep", storage.root, check=False)


@contextmanager
def meanwhile(work: Callable[[int], None]) -> Iterator[None]:
    """Does `work` again and again, with a number, until the block has ended."""
    ended = threading.Event()
    failures: list[BaseException] = []

    def loop() -> None:
        number = 0
        while not ended.is_set():
            try:
                work(number)
            except BaseException as error:  # noqa: BLE001 - it is shown at the end
                failures.append(error)
                return
            number += 1

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert not failures, failures


def test_pushes_in_progress_are_no_faults(storage: Storage, served: DockerRegistry) -> None:
    """Images come, tags move, manifests are deleted and uploads cancelled all the time; nothing of it is reported."""

    def use(number: int) -> None:
        first = push_image(served, f"push/r{number % 7}", b"image %d" % number, "latest")
        if number % 3 == 0:
            served.request("DELETE", f"/v2/push/r{number % 7}/manifests/{first}")
        url = served.patch(served.post(f"push/r{number % 7}"), b"x" * 1000)
        if number % 2:
            served.request("DELETE", url)

    with meanwhile(use):
        for _ in range(4):
            result = check(storage)
            assert (result.returncode, result.stdout) == (0, "")


def test_a_request_in_progress_keeps_its_upload(storage: Storage, served: DockerRegistry) -> None:
    """A PATCH whose body is still coming has the data open: not even `--older-than 0` takes it away."""
    url = served.post("team/app")
    with served.held_patch(url) as patch:
        patch.send(b"a" * 100_000)
        (directory,) = storage.uploads("team/app")
        result = run(COMMAND, "purge-uploads", "--older-than", "0", storage.root)
        assert directory.name in result.stderr
        patch.send(b"b" * 100_000)
        assert b"202" in patch.finish()
    assert (directory / "data").stat().st_size == 200_000


def test_a_registry_goes_on_after_a_purge(storage: Storage, served: DockerRegistry) -> None:
    """What was purged is unknown to it, as if it had purged it itself; everything else works."""
    url = served.patch(served.post("team/app"), b"x" * 1000)
    push_image(served, "team/app", b"kept", "v1")
    run(COMMAND, "purge-uploads", "--older-than", "0", storage.root)
    assert storage.uploads("team/app") == []
    assert served.put(url, digest_of(b"x" * 1000)).status == 404
    push_image(served, "team/app", b"another", "v2")
    assert served.request("GET", "/v2/team/app/tags/list").body.count(b"v") == 2
    assert check(storage).stdout == ""


def test_what_a_registry_leaves_of_cancelled_uploads_is_purged(storage: Storage, served: DockerRegistry) -> None:
    """It never removes these itself."""
    served.request("DELETE", served.post("team/app"))
    assert len(storage.uploads("team/app")) == 1
    result = run(COMMAND, "purge-uploads", "--older-than", "0", "--format", "json", storage.root)
    assert json.loads(result.stdout.splitlines()[-1])["uploads"] == 1
    assert storage.uploads("team/app") == []


def test_an_alias_that_a_registry_has_left_is_a_fault(storage: Storage, served: DockerRegistry) -> None:
    """It deletes the link that it is asked to, and then can serve the layer by none of its names."""
    push_image(served, "team/app", b"one", "v1")
    data = b"layer" * 1000
    alias = served.push("team/app", data, digest_of(data, "sha512"))
    assert (check(storage).stdout, served.head("team/app", alias).status) == ("", 200)
    assert served.delete("team/app", digest_of(data)).status == 202
    assert served.get("team/app", alias).status == 500
    result = check(storage)
    assert result.returncode == 4
    assert f"dangling-layer-link        team/app {alias}\n" in result.stdout
    assert result.stdout.endswith("1 fault: 1 error, 0 warnings\n")
