"""What a registry and `layerfs check` say of a storage that clients have written to through a mount."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.clients import skopeo_copy_to_directory
from harness.clients_layouts import MANIFEST_TYPES, Image
from harness.commands import run
from harness.images import digest
from harness.mount import COMMAND
from harness.object_stores import gateway
from harness.registry import SIGNING_KEY, ConfiguredRegistry, DockerRegistry
from harness.storage import Storage
from harness.stored_path import StoredPath

#: What no garbage collector may say of a storage in which everything is in use.
NOTHING_TO_DELETE = re.compile(r"\b0 blobs and 0 manifests eligible for deletion")

#: Seconds. Of a hundred pushes that were cut off in an object store a check asks seven thousand things.
_CHECK_LIMIT = 600


def faults(storage: Storage) -> list[str]:
    """What `layerfs check --deep` finds: `kind place`."""
    argv = [COMMAND, "check", "--deep", "--format", "json", storage.source]
    result = run(*argv, check=False, timeout=_CHECK_LIMIT)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines, f"the check ended with {result.returncode}: {result.stderr}"
    assert lines[-1]["type"] == "summary", lines
    found = [f"{line['kind']} {line['place']}" for line in lines if line["type"] == "fault"]
    assert result.returncode == (4 if found else 0), result.returncode
    return found


def assert_clean(storage: Storage) -> None:
    """Nothing is wrong; uploads that were begun a moment ago are not wrong, and a registry purges them."""
    found = faults(storage)
    assert found == [], found


def assert_nothing_lost(storage: Storage) -> None:
    """Nothing is wrong but pushes that were cut off, the last step of which is to put the manifest.

    Without directories, a repository that was given all the blobs of an image looks like one that has lost it.
    """
    found = faults(storage)
    if not storage.is_local:
        found = [fault for fault in found if not fault.startswith("repo-without-manifests ")]
    assert found == [], found


def assert_served(
    storage: Storage, directory: Path, images: dict[tuple[str, str], Image], *, all_in_use: bool, orphans: int = 0
) -> None:
    """A registry serves these images (by repository and tag) and no other tags of theirs, byte for byte.

    With `all_in_use`, its garbage collector finds nothing that is not needed. `layerfs check` finds nothing wrong but
    so many `orphans`: blobs that no repository has any more.
    """
    with registry_on(storage, directory) as registry:
        for (repository, tag), image in images.items():
            _assert_pulled(registry, repository, tag, image, directory / "pulled")
        for repository in {name for name, _ in images}:
            expected = {tag for name, tag in images if name == repository}
            assert tags_served(registry, repository) == expected
        if all_in_use:
            said = registry.garbage_collect()
            assert NOTHING_TO_DELETE.search(said), said
    found = faults(storage)
    assert [fault.split()[0] for fault in found] == ["orphan-blob"] * orphans, found


@contextmanager
def registry_on(storage: Storage, directory: Path) -> Iterator[DockerRegistry]:
    """A registry that serves what is stored.

    It has its storage in the same place; but Debian's cannot be told where Azure and Google are emulated, and gets a
    copy on this machine of what is there.
    """
    root = storage.root
    if not isinstance(root, StoredPath):
        registry = DockerRegistry(root, directory)
    elif root.store.name == "s3":
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "s3.yml"
        config.write_text(gateway().registry_config(str(root), signing_key=SIGNING_KEY))
        registry = ConfiguredRegistry(config, directory)
    else:
        registry = DockerRegistry(_download(root, directory / "copy"), directory)
    with registry:
        yield registry


def _download(root: StoredPath, target: Path) -> Path:
    """All but unfinished uploads, which no registry serves, and not every store lets be read."""
    target.mkdir(parents=True)
    for name in root.files():
        if "/_uploads/" not in name and not name.endswith("/.keep"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((root / name).read_bytes())
    return target


def tags_served(registry: DockerRegistry, repository: str) -> set[str]:
    answer = registry.request("GET", f"/v2/{repository}/tags/list")
    assert answer.status == 200, answer
    return set(json.loads(answer.body)["tags"] or [])


def digest_served(registry: DockerRegistry, repository: str, tag: str) -> str:
    """The digest that a registry gives for a tag, of whatever kind."""
    answer = registry.request("HEAD", f"/v2/{repository}/manifests/{tag}", Accept=", ".join(MANIFEST_TYPES))
    assert answer.status == 200, f"{repository}:{tag}: {answer}"
    return answer.headers["docker-content-digest"]


def _assert_pulled(registry: DockerRegistry, repository: str, tag: str, image: Image, directory: Path) -> None:
    assert digest_served(registry, repository, tag) == image.digest
    target = directory / repository / tag
    target.parent.mkdir(parents=True, exist_ok=True)
    pulled = skopeo_copy_to_directory(f"docker://{registry.host}/{repository}:{tag}", target)
    pulled.pop("version")
    assert {digest(content) for content in pulled.values()} == set(image.content)
