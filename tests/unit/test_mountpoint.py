"""What can be known about a place from the table of mounts and the directories around it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import mountpoint
from layerfs.mountpoint import Mount, MountpointError, mount_at, parse_mountinfo, resolve


def mount(mount_id: int, parent_id: int, path: str, filesystem_type: str = "ext4") -> Mount:
    return Mount(mount_id, parent_id, "8:1", "/", path, filesystem_type, "source")


# --- mountinfo


def test_the_fields_of_a_line() -> None:
    """Ids, device, root, mountpoint, type and source; the optional fields in the middle are of any number."""
    for optional in (b"", b" shared:1", b" shared:1 master:2"):
        line = b"36 35 98:0 /part /mnt/x rw,nosuid" + optional + b" - fuse.layerfs s3://b/p rw,user_id=0\n"
        options = frozenset({"rw", "nosuid", "user_id=0"})
        assert parse_mountinfo(line) == [Mount(36, 35, "98:0", "/part", "/mnt/x", "fuse.layerfs", "s3://b/p", options)]


def test_escapes() -> None:
    r"""Space, tab, newline, backslash and # come as octal numbers; nothing else is an escape."""
    [found] = parse_mountinfo(rb"1 0 0:1 / /a\040b\011c\012d\134e\043f\134040 rw - tmpfs a\040b rw" + b"\n")
    assert found.path == "/a b\tc\nd\\e#f\\040"
    assert found.source == "a b"


def test_names_that_are_not_text() -> None:
    """Bytes that are no UTF-8, and separators that only Python sees, survive."""
    name = b"/a\xff\x0b\xc2\x85\xe2\x80\xa8"
    [found] = parse_mountinfo(b"1 0 0:1 / " + name + b" rw - tmpfs none rw\n")
    assert os.fsencode(found.path) == name


def test_the_topmost_of_a_stack() -> None:
    """Of mounts on top of each other the one that is seen counts, in whatever order the kernel lists them."""
    stack = [mount(10, 1, "/m"), mount(12, 11, "/m"), mount(11, 10, "/m"), mount(13, 1, "/m/below")]
    for mounts in (stack, stack[::-1]):
        found = mount_at("/m", mounts)
        assert found is not None
        assert found.mount_id == 12
    assert mount_at("/n", stack) is None


def test_this_machine() -> None:
    """The real table has /proc, from which it was read."""
    assert mount_at("/proc", mountpoint.read_mounts()) is not None


# --- resolving


def test_resolve_is_realpath(tmp_path: Path) -> None:
    """Links in the middle and at the end, relative and absolute, `..` after a link, and what does not exist."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    (tmp_path / "a/b/up").symlink_to("../../link")
    (tmp_path / "absolute").symlink_to(tmp_path / "link")
    for name in ("link", "link/..", "a/b/up/../x", "absolute/./new//deep", "a/../link/", "nothing/../a"):
        path = f"{tmp_path}/{name}"
        assert resolve(path, []) == os.path.realpath(path)


def test_resolve_is_relative_to_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path begins at the working directory."""
    monkeypatch.chdir(tmp_path)
    assert resolve("x/../y", []) == os.path.realpath(tmp_path / "y")


def test_links_in_a_circle(tmp_path: Path) -> None:
    """Are an error, not a loop."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(MountpointError, match="symbolic links"):
        resolve(str(tmp_path / "a"), [])


def test_a_fuse_mount_is_not_looked_at(tmp_path: Path) -> None:
    """The path of a FUSE mount is taken as it stands: even a question whether it is a link could block for ever."""
    (tmp_path / "link").symlink_to("elsewhere")
    path = str(tmp_path / "link")
    assert resolve(path, [mount(1, 0, path, "fuse.layerfs")]) == path
    assert resolve(path, [mount(1, 0, path, "ext4")]) == str(tmp_path / "elsewhere")


# --- asking


def test_ask_gives_the_answer() -> None:
    """What the child returns, however often."""
    assert mountpoint.ask(lambda: b"x" * 40_000) == b"x" * 40_000


def test_ask_gives_up() -> None:
    """A child that does not answer in time is left behind, and nobody waits for it."""
    started = time.monotonic()
    assert mountpoint.ask(lambda: bytes(time.sleep(60) or b"late"), seconds=0.2) is None
    assert time.monotonic() - started < 10


def test_ask_when_the_question_fails() -> None:
    """An exception in the child is no answer."""
    assert mountpoint.ask(lambda: bytes([1 // 0])) is None


# --- before mounting


def refusal(path: Path, storage: Path | None = None) -> str:
    with pytest.raises(MountpointError) as raised:
        mountpoint.prepare(str(path), storage=None if storage is None else str(storage))
    assert repr(str(path)) in str(raised.value)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_an_empty_directory_will_do(tmp_path: Path) -> None:
    """Its resolved path comes back."""
    (tmp_path / "mnt").mkdir()
    (tmp_path / "storage").mkdir()
    (tmp_path / "link").symlink_to("mnt")
    assert mountpoint.prepare(str(tmp_path / "link"), storage=str(tmp_path / "storage")) == str(tmp_path / "mnt")


def test_places_that_will_not_do(tmp_path: Path) -> None:
    """Missing, a file, not empty: each says so."""
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    assert "does not exist" in refusal(tmp_path / "missing")
    assert "not a directory" in refusal(tmp_path / "file")
    assert "not empty" in refusal(tmp_path / "full")
    assert "'x'" in refusal(tmp_path / "full")


def test_places_that_overlap_with_the_storage(tmp_path: Path) -> None:
    """The storage, below it, above it; also when the storage is named by a link or does not exist yet."""
    storage = tmp_path / "storage"
    (storage / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("storage")
    assert "is the storage" in refusal(storage, storage)
    assert "is inside the storage" in refusal(storage / "sub", tmp_path / "link")
    assert "contains the storage" in refusal(tmp_path, storage)
    assert "contains the storage" in refusal(storage / "sub", storage / "sub/new/er")


def test_a_common_beginning_is_no_overlap(tmp_path: Path) -> None:
    """`/a/storage-2` is not inside `/a/storage`."""
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage-2").mkdir()
    mountpoint.prepare(str(tmp_path / "storage-2"), storage=str(tmp_path / "storage"))


@pytest.fixture
def bind(tmp_path: Path) -> Iterator[Path]:
    """A bind mount of `storage/docker`, which is a second name for a part of the storage."""
    (tmp_path / "storage/docker/deep").mkdir(parents=True)
    alias = tmp_path / "alias"
    alias.mkdir()
    subprocess.run(["mount", "--bind", tmp_path / "storage/docker", alias], check=True)
    yield alias
    subprocess.run(["umount", "-l", alias], check=True)


def test_bind_mounts_count(bind: Path, tmp_path: Path) -> None:
    """A bind mount of a part of the storage is inside it, though no name and no directory above says so."""
    assert "is inside the storage" in refusal(bind / "deep", tmp_path / "storage")
    assert "is inside the storage" in refusal(bind, tmp_path / "storage")
    assert "contains the storage" in refusal(tmp_path / "storage/docker", bind / "deep")


def test_the_line_in_fuse_conf(tmp_path: Path) -> None:
    """`user_allow_other` counts only uncommented."""
    conf = tmp_path / "fuse.conf"
    for content, allowed in (("#user_allow_other\n", False), ("x\n  user_allow_other \n", True), ("", False)):
        conf.write_text(content)
        assert mountpoint.fuse_conf_allows_other(str(conf)) is allowed
    assert mountpoint.fuse_conf_allows_other(str(tmp_path / "none")) is False
