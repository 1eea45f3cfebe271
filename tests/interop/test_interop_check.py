"""What `check` says stops a registry's garbage collection does stop it, and what it is silent about does not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from harness.commands import run
from harness.registry import DockerRegistry
from harness.storage import Storage
from harness.tarsums import LABELS, archive, tarsum_of

from layerfs.driver.local import LocalDriver
from layerfs.registry import Registry
from layerfs.registry.maintenance import check

HEX = "0" * 63 + "1"
NAME = "team/app"


def collects(storage: Storage, directory: Path) -> bool:
    """Whether a dry run of the registry's garbage collection comes to its end."""
    config = DockerRegistry(storage.root, directory).config
    result = run("docker-registry", "garbage-collect", "--dry-run", config, check=False)
    said = result.stdout + result.stderr
    assert ("failed to garbage collect" in said) != (" blobs marked, " in said), said
    return " blobs marked, " in said


async def faults_of(storage: Storage) -> list[tuple[str, str]]:
    """Kind and path of each, the path as seen from the blobs and repositories."""
    async with aclosing(check(Registry(LocalDriver(str(storage.root))), settle=0)) as faults:
        return [(fault.kind.value, fault.path.removeprefix("/docker/registry/v2/")) async for fault in faults]


REVISIONS = f"repositories/{NAME}/_manifests/revisions"

#: A file, what it holds, and what is said of it.
STOPPING = [
    ("blobs/data", "what", "misplaced-blob"),
    ("blobs/foo/data", "what", "misplaced-blob"),
    ("blobs/sha256/ab/data", "what", "misplaced-blob"),
    (f"blobs/sha256/ab/{HEX}/data", "what", "misplaced-blob"),
    (f"blobs/sha256/{HEX[:2]}/{HEX}/more/data", "what", "misplaced-blob"),
    (f"{REVISIONS}/sha256/{HEX}/link", "", "empty-link"),
    (f"{REVISIONS}/sha256/{HEX}/link", f"sha256:{HEX}\n", "link-with-newline"),
    (f"{REVISIONS}/sha256/{HEX}/link", "junk", "bad-link"),
    (f"{REVISIONS}/sha256/{HEX}/signatures/sha256/{HEX}/link", "junk", "bad-link"),
    (f"{REVISIONS}/sha256/zz/link", "", "empty-link"),
    (f"{REVISIONS}/foo/link", "junk", "bad-link"),
]

#: What does not stop it, whatever it is, and is not said to be there.
PASSED_OVER = [
    ("blobs/README", "what"),
    (f"blobs/sha256/{HEX[:2]}/{HEX}/notes", "what"),
    (f"{REVISIONS}/foo/link", f"sha256:{HEX}"),
    (f"{REVISIONS}/README", "what"),
    (f"repositories/{NAME}/_uploads/foo/link", "what"),
]


@pytest.mark.parametrize(("path", "content", "kind"), STOPPING)
async def test_what_stops_garbage_collection_is_a_fault(
    storage_copy: Callable[[str], Storage], tmp_path: Path, path: str, content: str, kind: str
) -> None:
    """The one file is named, and nothing else."""
    storage = storage_copy("storage")
    put(storage, path, content)
    assert not collects(storage, tmp_path / "registry")
    assert await faults_of(storage) == [(kind, path)]


@pytest.mark.parametrize(("path", "content"), PASSED_OVER)
async def test_what_is_no_fault_stops_no_garbage_collection(
    storage_copy: Callable[[str], Storage], tmp_path: Path, path: str, content: str
) -> None:
    """Files of other names, and links to something else."""
    storage = storage_copy("storage")
    put(storage, path, content)
    assert collects(storage, tmp_path / "registry")
    assert await faults_of(storage) == []


async def test_a_tree_of_the_seed_era_stops_no_garbage_collection(storage: Storage, tmp_path: Path) -> None:
    """Nor is anything wrong with it: layers under their TarSums, and uploads without a time."""
    storage.make_repository(NAME)
    for vector in ("types.tar", "xattr.tar"):
        digest = storage.put_layer(NAME, archive(vector))
        for label in LABELS:
            storage.put_link(NAME, tarsum_of(vector, label), digest)
    storage.put_upload(NAME, None, started_at=None, states={"0": b"gob" * 52})
    assert collects(storage, tmp_path / "registry")
    assert await faults_of(storage) == []


def put(storage: Storage, path: str, content: str) -> None:
    file = storage.v2 / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
