"""Walking through the repositories of a registry on S3: they are listed ahead of who walks, and no others."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.mount import Mount
from harness.remote import RemoteRegistry, link_key
from harness.s3_proxy import S3Proxy

pytestmark = pytest.mark.usefixtures("watchdog")

Mounts = Callable[..., Mount]

#: What storage is asked to list when the directories of a repository are opened, the last one by its uploads as well.
PLACES = ("_layers", "_manifests", "_uploads")


@pytest.fixture
def names(remote: RemoteRegistry) -> list[str]:
    """Repositories with a layer each, in the order in which they are listed."""
    names = [f"group/r{number:02}" for number in range(24)]
    digest = remote.put_blob(b"layer")
    remote.put_all((link_key(name, digest), digest.encode()) for name in names)
    return names


def found(directory: Path) -> list[str]:
    """What `find` finds."""
    lines = subprocess.run(["find", directory], capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(str(Path(line).relative_to(directory)) for line in lines)


def listed_in(remote: RemoteRegistry, name: str) -> list[str]:
    """The directories of a repository that storage was asked to list, itself as ""."""
    place = f"docker/registry/v2/repositories/{name}/"
    prefixes = [prefix.replace("%2F", "/") for prefix in remote.listed_prefixes()]
    return [prefix.removeprefix(place).split("/")[0] for prefix in prefixes if prefix.startswith(place)]


def test_find_is_listed_ahead(remote: RemoteRegistry, mounts: Mounts, names: list[str]) -> None:
    """The same is found as without, by the same requests; but they are made side by side."""
    expected = found(mounts(remote.url, "--metadata-ttl", "0").path / "group")
    asked_one_by_one = remote.proxy.counts
    mount = mounts(remote.url, "--metadata-ttl", "60")
    remote.proxy.latency = 0.03
    remote.proxy.forget()
    assert found(mount.path / "group") == expected
    assert len([path for path in expected if path.endswith("/_layers")]) == len(names)
    assert remote.proxy.counts["ListObjectsV2"] <= asked_one_by_one["ListObjectsV2"]
    assert remote.proxy.most_at_once >= 8
    for name in names:
        assert listed_in(remote, name).count("") == 1


def test_names_are_listed_ahead(remote: RemoteRegistry, mounts: Mounts, names: list[str]) -> None:
    """Of who goes through them without looking into repositories: side by side, and nothing else."""
    mount = mounts(remote.url, "--metadata-ttl", "60")
    remote.proxy.latency = 0.03
    remote.proxy.forget()
    command = ["find", mount.path / "group", "-name", "_*", "-prune", "-o", "-print"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(shown) == len(names) + 1
    assert remote.proxy.most_at_once >= 6
    for name in names:
        assert listed_in(remote, name) == [""]


def test_who_looks_at_one_repository_asks_for_nothing_else(
    remote: RemoteRegistry, mounts: Mounts, names: list[str]
) -> None:
    """Nor who looks into one here and one there, or only goes through the names."""
    mount = mounts(remote.url, "--metadata-ttl", "60")
    looked_into = [names[3], names[9], names[1]]
    for name in looked_into:
        os.listdir(mount.path / name)
        os.listdir(mount.path / name / "_layers")
    for name in names[10:]:
        os.listdir(mount.path / name)
    for name in names:
        expected = {"", "_layers"} if name in looked_into else {""} if name in names[10:] else set()
        assert set(listed_in(remote, name)) == expected


def test_who_walks_slowly_has_nothing_listed_twice(remote: RemoteRegistry, mounts: Mounts, names: list[str]) -> None:
    """What would be forgotten before he comes to it is not listed ahead."""
    mount = mounts(remote.url, "--metadata-ttl", "0.5")
    os.listdir(mount.path / "group")
    for name in names[:5]:
        os.listdir(mount.path / name)
        for place in PLACES:
            os.listdir(mount.path / name / place)
        time.sleep(0.6)  # longer than a listing holds
    for name in names[:5]:
        assert [listed_in(remote, name).count(place) for place in ("_layers", "_uploads")] == [1, 1]
    assert not listed_in(remote, names[5])


def test_what_cannot_be_listed_ahead(remote: RemoteRegistry, mounts: Mounts, names: list[str], proxy: S3Proxy) -> None:
    """It is tried again when he comes to it."""
    mount = mounts(remote.url, "--metadata-ttl", "60")
    expected = found(mount.path / "group")
    mount = mounts(remote.url, "--metadata-ttl", "60")
    proxy.latency = 0.02
    for name in names[:3]:
        for place in ("", *PLACES):
            os.listdir(mount.path / name / place)
    proxy.fail("error_in_200", "ListObjectsV2", times=3)
    assert found(mount.path / "group") == expected


def test_a_change_of_our_own_is_listed_at_once(remote: RemoteRegistry, mounts: Mounts, names: list[str]) -> None:
    """However long listings hold: a new repository, one that was only a beginning, and one that is no more."""
    mount = mounts(remote.url, "--metadata-ttl", "3600", "--allow-delete")
    group, new = mount.path / "group", mount.path / "group/new"
    was = sorted(os.listdir(group))
    new.mkdir()
    assert sorted(os.listdir(group)) == sorted([*was, "new"])
    new.rmdir()
    assert sorted(os.listdir(group)) == was
    assert "_layers" not in os.listdir(group)
    (group / "_uploads/x").write_bytes(b"content")
    assert {"_layers", "_uploads"} <= set(os.listdir(group))
    (group / "_uploads/x").unlink()
    assert sorted(os.listdir(group)) == was
    (layer,) = (group / "r05/_layers").iterdir()
    layer.unlink()
    assert sorted(os.listdir(group)) == sorted(set(was) - {"r05"})


def test_blobs_of_a_layout_that_were_just_listed(remote: RemoteRegistry, mounts: Mounts, names: list[str]) -> None:
    """`ls -l` of them costs no request after the layers were listed, and what is gone since is not there."""
    mount = mounts(remote.url, "--metadata-ttl", "3600", "--allow-delete")
    (layer,) = (mount.path / names[0] / "_layers").iterdir()
    os.listdir(mount.path / names[0] / "_manifests")
    blob = mount.path / names[0] / "_oci/blobs/sha256" / layer.name.removeprefix("sha256:")
    blob.parent.stat()
    remote.proxy.forget()
    assert (blob.stat().st_size, os.listdir(blob.parent)) == (len(b"layer"), [blob.name])
    assert not remote.proxy.seen
    layer.unlink()
    assert not blob.exists()
