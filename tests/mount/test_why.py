"""Faults as they happen: each is an errno of its own kind, one line in the log, and `layerfs why` names the cause.

The faults are real: a full disk is full, a damaged blob is damaged, and a daemon that may not write may not write.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.bounded import Child, attempt
from harness.commands import append, get_xattr, opened, run, shell, wait_until, write_all
from harness.fuse_device import open_to_everybody
from harness.gcs_server import BUCKET, GcsServer
from harness.images import OCI_CONFIG, describe, oci_image
from harness.loopfs import LoopFilesystem
from harness.mount import COMMAND, Mount
from harness.object_stores import gateway
from harness.repository import MountedRepository
from harness.s3_proxy import S3Proxy
from harness.storage import Storage, cut, digest_of
from harness.stores import Store

from layerfs.advice import advice_for

NOBODY = 65534
DATA = b"a layer" * 1000
DIGEST = digest_of(DATA)
RENAME_EXCHANGE = 2


@dataclass(frozen=True)
class Fault:
    """What a fault must come to: the errno, the class of the error, and words of the reason that no other fault has.
    Stores have words of their own for some.

    `cause` makes it happen in a repository, and says of which path to ask why. `options` and `disk` are those of the
    mount that it needs, none for the one that all share.
    """

    error: str
    kind: str
    reason: str
    cause: Callable[[MountedRepository], Path]
    options: tuple[str, ...] = ()
    disk: str = ""
    reason_of_store: str = ""


def refused(function: Callable[..., object], *arguments: object) -> None:
    """What the kernel says is not looked at here: the log and `why` are."""
    seen = attempt(function, *arguments, seconds=30)
    assert not seen.is_ok, f"{function.__name__}{arguments} succeeded"


# --- what clients do wrong -------------------------------------------------------------------------------------------


def wrong_digest(at: MountedRepository) -> Path:
    at.put_upload("x", b"other bytes")
    refused(os.rename, at.upload("x"), at.layer(DIGEST))
    assert "does not match" in get_xattr(at.upload("x"), "user.layerfs.error")
    return at.upload("x")


def written_as_another(at: MountedRepository) -> Path:
    refused(append, at.layer(digest_of(b"expected")), b"other bytes than those")
    return at.layer(digest_of(b"expected"))


def no_digest(at: MountedRepository) -> Path:
    at.put_upload("named", DATA)
    refused(os.rename, at.upload("named"), at.layer("sha256:abc"))
    return at.layer("sha256:abc")


def stored_blob(at: MountedRepository) -> Path:
    path = at.layer(at.storage.put_layer(at.name, DATA))
    refused(append, path, b"more")
    return path


def removed_layer(at: MountedRepository) -> Path:
    path = at.layer(at.storage.put_layer(at.name, DATA))
    refused(os.unlink, path)
    return path


def mode_of_layer(at: MountedRepository) -> Path:
    path = at.layer(at.storage.put_layer(at.name, DATA))
    refused(os.chmod, path, 0o600)
    return path


def bad_tag(at: MountedRepository) -> Path:
    refused(os.symlink, f"../_manifests/{DIGEST}", at.path / "_tags/-dash")
    return at.path / "_tags/-dash"


def bad_repository_name(at: MountedRepository) -> Path:
    refused(os.mkdir, at.mount.path / "Upper")
    return at.mount.path / "Upper"


def bad_manifest(at: MountedRepository) -> Path:
    refused((at.path / "_tags/v1").write_bytes, b"{")
    return at.path / "_tags/v1"


def missing_reference(at: MountedRepository) -> Path:
    image = json.dumps(oci_image(layers=[b"nobody has this"]) | {"config": describe(b"{}", OCI_CONFIG)}).encode()
    refused((at.path / "_tags/v2").write_bytes, image)
    return at.path / "_tags/v2"


def large_manifest(at: MountedRepository) -> Path:
    at.put_upload("large", bytes((4 << 20) + 1))
    refused(os.rename, at.upload("large"), at.path / "_tags/v3")
    return at.upload("large")


def wrong_manifest_digest(at: MountedRepository) -> Path:
    path = at.path / "_manifests" / DIGEST
    refused(path.write_bytes, json.dumps(oci_image()).encode())
    return path


def two_writers(at: MountedRepository) -> Path:
    with opened(at.upload("one"), os.O_WRONLY | os.O_CREAT) as writer:
        write_all(writer, b"begun")
        refused(append, at.upload("one"), b"me too")
    return at.upload("one")


def not_empty(at: MountedRepository) -> Path:
    at.storage.put_layer(at.name, DATA)
    refused(os.rmdir, at.path)
    return at.path


def long_name(at: MountedRepository) -> Path:
    path = at.upload("n" * 300)
    refused(path.write_bytes, b"")
    return path


def special_file(at: MountedRepository) -> Path:
    refused(os.mkfifo, at.upload("fifo"))
    return at.upload("fifo")


def link_among_layers(at: MountedRepository) -> Path:
    refused(os.symlink, "somewhere", at.layer(DIGEST))
    return at.layer(DIGEST)


def set_attribute(at: MountedRepository) -> Path:
    refused(os.setxattr, at.path, "user.layerfs.digest", b"x")
    return at.path


def exchanged(at: MountedRepository) -> Path:
    at.put_upload("left", b"1")
    at.put_upload("right", b"2")
    left, right = os.fsencode(at.upload("left")), os.fsencode(at.upload("right"))

    def exchange() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(-100, left, -100, right, RENAME_EXCHANGE):
            raise OSError(ctypes.get_errno(), "renameat2")

    refused(exchange)
    return at.upload("left")


# --- what is wrong with the storage ----------------------------------------------------------------------------------


def truncated_blob(at: MountedRepository) -> Path:
    data = os.urandom(5000)
    digest = at.storage.put_layer(at.name, data)
    assert at.layer(digest).stat().st_size == len(data)
    cut(at.storage.blob(digest), 100)
    refused(at.layer(digest).read_bytes)
    return at.layer(digest)


def wrong_link(at: MountedRepository) -> Path:
    digest = at.storage.put_blob(os.urandom(100))
    at.storage.put_link(at.name, digest, digest_of(b"something else"))
    refused(os.stat, at.layer(digest))
    return at.layer(digest)


def broken_link(at: MountedRepository) -> Path:
    digest = at.storage.put_blob(os.urandom(100))
    at.storage.put_link(at.name, digest, "no digest at all, though as long as one is" * 2)
    refused(os.stat, at.layer(digest))
    return at.layer(digest)


def dangling_link(at: MountedRepository) -> Path:
    digest = digest_of(os.urandom(100))
    at.storage.put_link(at.name, digest)
    refused(os.stat, at.layer(digest))
    return at.layer(digest)


def full_disk(at: MountedRepository) -> Path:
    with opened(at.storage.root / "ballast", os.O_WRONLY | os.O_CREAT) as ballast:
        for size in (1 << 20, 4096, 1):
            while attempt(os.write, ballast, bytes(size)).is_ok:
                pass
    refused(at.put_upload, "big", bytes(4 << 20))
    return at.upload("big")


def read_only_storage(at: MountedRepository) -> Path:
    run("mount", "-o", "remount,ro", at.storage.root.parent)
    refused(os.mkdir, at.mount.path / "another")
    return at.mount.path / "another"


def stuck_disk(at: MountedRepository) -> Path:
    run("fsfreeze", "-f", at.storage.root.parent)
    try:
        refused(os.mkdir, at.mount.path / "stuck")
    finally:
        run("fsfreeze", "-u", at.storage.root.parent)
    return at.mount.path / "stuck"


def permission_denied(at: MountedRepository) -> Path:
    refused(_as_nobody, os.mkdir, at.mount.path / "denied")
    return at.mount.path / "denied"


def _as_nobody(function: Callable[..., object], *arguments: object) -> None:
    """In a child process, as whoever mounted: nobody else is let in."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    function(*arguments)


# --- what the mount does not allow -----------------------------------------------------------------------------------


def read_only_mount(at: MountedRepository) -> Path:
    # The kernel answers by itself while the mount itself is read-only.
    run("mount", "-o", "remount,rw", at.mount.path, check=False)
    refused(os.mkdir, at.mount.path / "new")
    return at.mount.path / "new"


def too_many_files(at: MountedRepository) -> Path:
    digest = at.storage.put_layer(at.name, DATA)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(opened(at.layer(digest), os.O_RDONLY))
        refused(at.layer(digest).read_bytes)
    # Whoever asks why opens files himself.
    wait_until(lambda: attempt(at.layer(digest).read_bytes).is_ok, "the files are closed")
    return at.layer(digest)


def too_many_uploads(at: MountedRepository) -> Path:
    with opened(at.upload("first"), os.O_WRONLY | os.O_CREAT):
        refused(append, at.upload("second"), b"x")
    return at.upload("second")


FAULTS = {
    "wrong-digest": Fault("EBADMSG", "LayerInvalidDigest", "but the 11 bytes uploaded are", wrong_digest),
    "written-as-another": Fault("EBADMSG", "LayerInvalidDigest", "but the 22 bytes uploaded are", written_as_another),
    "no-digest": Fault("EINVAL", "InvalidArgument", "is no digest that content can be stored under", no_digest),
    "stored-blob": Fault("EPERM", "NotPermitted", "is a stored blob: it cannot be written", stored_blob),
    "removed-layer": Fault("EPERM", "NotPermitted", "--allow-delete", removed_layer),
    "mode-of-layer": Fault("EPERM", "NotPermitted", "mode and owner of", mode_of_layer),
    "bad-tag": Fault("EINVAL", "InvalidTag", "invalid tag", bad_tag),
    "bad-repository-name": Fault("EINVAL", "InvalidArgument", "invalid repository name", bad_repository_name),
    "bad-manifest": Fault("EINVAL", "InvalidManifest", "it is not JSON", bad_manifest),
    "missing-reference": Fault("ENOLINK", "ManifestReferencesUnknown", "is not in this repository", missing_reference),
    "large-manifest": Fault("EFBIG", "ManifestTooLarge", "manifest too large", large_manifest),
    "wrong-manifest-digest": Fault(
        "EBADMSG", "ManifestInvalidDigest", "manifest does not match", wrong_manifest_digest
    ),
    "two-writers": Fault("EBUSY", "LayerUploadBusy", "another program has it open for writing", two_writers),
    "not-empty": Fault("ENOTEMPTY", "RepositoryNotEmpty", "is not empty: it holds", not_empty),
    "long-name": Fault("ENAMETOOLONG", "NameTooLong", "more than 255", long_name),
    "special-file": Fault("EPERM", "NotPermitted", "only regular files can be made here", special_file),
    "link-among-layers": Fault("EPERM", "NotPermitted", "symbolic links cannot be made in", link_among_layers),
    "set-attribute": Fault("EPERM", "NotPermitted", "is read-only", set_attribute),
    "exchanged": Fault("EINVAL", "InvalidArgument", "cannot be exchanged", exchanged),
    "truncated-blob": Fault(
        "EIO",
        "ShortRead",
        "its blob has 100 bytes left of 5000",
        truncated_blob,
        reason_of_store="it has 100 bytes now, not 5000",
    ),
    "wrong-link": Fault("EIO", "LinkMismatch", "it leads to sha256:", wrong_link),
    "broken-link": Fault("ENOENT", "LayerUnknown", "invalid link", broken_link),
    "dangling-link": Fault("ENOENT", "LayerUnknown", "unknown blob", dangling_link),
    "full-disk": Fault("ENOSPC", "StorageFull", "no space left in storage", full_disk, disk="tmpfs"),
    "read-only-storage": Fault("EROFS", "StorageReadOnly", "storage is read-only", read_only_storage, disk="tmpfs"),
    "stuck-disk": Fault(
        "ETIMEDOUT", "DeadlineExceeded", "not done after 2 s", stuck_disk, ("--operation-timeout", "2"), disk="ext4"
    ),
    "permission-denied": Fault("EACCES", "AccessDenied", "access to storage denied", permission_denied, disk="nobody"),
    "too-many-files": Fault("EMFILE", "HandleLimit", "--max-handles", too_many_files, ("--max-handles", "3")),
    "too-many-uploads": Fault("EDQUOT", "UploadLimit", "--max-uploads", too_many_uploads, ("--max-uploads", "1")),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Iterator[tuple[Mount, Storage]]:
    """One mount for all faults that need no other."""
    directory = tmp_path_factory.mktemp("why")
    storage = Storage.create(store.root(directory / "storage"))
    with Mount(storage.source, directory / "mnt") as mount:
        yield mount, storage


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, store: Store, watchdog: None) -> Iterator[MountedRepository]:
    """A repository on a mount as the fault needs it."""
    fault: Fault = request.param
    with ExitStack() as stack:
        if not fault.options and not fault.disk:
            mount, storage = request.getfixturevalue("shared")
        else:
            storage = Storage.create(store.root(stack.enter_context(disk_for(fault, tmp_path)) / "storage"))
            storage.make_repository("app")
            mount = stack.enter_context(mount_for(fault, storage, tmp_path, stack))
        words = re.sub("[^a-z0-9]+", "-", request.node.callspec.id)
        storage.make_repository("app" if fault.disk else words)
        yield MountedRepository(mount, storage, "app" if fault.disk else words)


class disk_for:  # noqa: N801 - a function with an end
    """Where the storage of a mount lies that has a fault."""

    def __init__(self, fault: Fault, directory: Path) -> None:
        self._kind = fault.disk
        self._stack = ExitStack()
        self._path = directory / "disk"

    def __enter__(self) -> Path:
        if self._kind == "ext4":
            return self._stack.enter_context(LoopFilesystem(self._path, mebibytes=32)).path
        self._path.mkdir()
        if self._kind == "tmpfs":
            run("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", self._path)
            self._stack.callback(run, "umount", "-l", self._path)
        return self._path

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()


def mount_for(fault: Fault, storage: Storage, directory: Path, stack: ExitStack) -> Mount:
    if fault.disk != "nobody":
        return Mount(storage.source, directory / "mnt", *fault.options)
    stack.enter_context(open_to_everybody())
    # Everything can be read, nothing written, by a daemon that is nobody.
    shell(
        'chmod 755 "$1" "$1"/.. && chmod -R a+rX "$1" && mkdir "$2" && chown 65534 "$2"', directory, directory / "mnt"
    )
    for parent in directory.parents[:3]:
        os.chmod(parent, parent.stat().st_mode | 0o055)  # noqa: S103 - as far as pytest's own directories
    return Mount(storage.root, directory / "mnt", *fault.options, user=NOBODY)


def why(path: Path, *, as_user: int = 0) -> dict:
    """What `layerfs why` says of a path."""
    result = run(COMMAND, "why", "--format", "json", path, user=as_user, group=as_user, extra_groups=[])
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("fault", "place"),
    [
        pytest.param(fault, fault, id=name, marks=[pytest.mark.local(f"a disk: {fault.disk}")] if fault.disk else [])
        for name, fault in FAULTS.items()
    ],
    indirect=["place"],
)
def test_a_fault_is_told_once_and_explained(fault: Fault, place: MountedRepository) -> None:
    """One errno, one line in the log (none for what is not there), and the cause with what to do about it."""
    mount = place.mount
    reason = fault.reason if place.storage.is_local else fault.reason_of_store or fault.reason
    before = len(mount.read_log())
    path = fault.cause(place)
    answer = why(path, as_user=NOBODY if fault.disk == "nobody" else 0)
    # The log is written before the answer is.
    lines = [line for line in mount.read_log()[before:] if line.is_refusal and fault.error in line.text]
    for line in mount.read_log()[before:]:
        line.declared = True
    found = answer["failures"][0]
    assert (found["error"], found["kind"]) == (fault.error, fault.kind), answer
    assert reason in found["reason"]
    assert found["advice"] == advice_for(fault.kind)
    others = [other for other in FAULTS.values() if other is not fault and other.error == fault.error]
    assert not [other.reason for other in others if other.reason in found["reason"]]
    if fault.error == "ENOENT":
        assert lines == []
        return
    # Of a file that could be opened the kernel wants the page once more that it did not get when it read ahead.
    limit = 2 if reason != fault.reason and found["operation"] == "read" else 1
    assert 1 <= len(lines) <= limit, "\n".join(line.text for line in lines)
    record = lines[-1].record
    assert reason in record["message"]
    assert record["path"].startswith(found["path"])
    assert (record["request"], record["operation"], record["errno"]) == (
        found["request"],
        found["operation"],
        found["error"],
    )


def test_a_store_that_was_killed(mounts: Callable[..., Mount], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cause is named on object stores too: nobody listens there any more. Its requests are among the figures."""
    server = GcsServer()
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        mount = mounts(f"gs://{BUCKET}/why", "--create", "--operation-timeout", "4", "--metadata-ttl", "0")
        os.mkdir(mount.path / "app")
        append(mount.path / "app/_uploads/layer", DATA)
        os.rename(mount.path / "app/_uploads/layer", mount.path / "app/_layers" / DIGEST)
    finally:
        server.stop()
    before = len(mount.read_log())
    # In a directory that the kernel knows nothing of yet: it asks once more for one that it knew.
    refused(os.stat, mount.path / "other")
    found = why(mount.path / "other/_layers")["failures"][0]
    lines = [line for line in mount.read_log()[before:] if line.is_refusal]
    for line in mount.read_log()[before:]:
        line.declared = True
    assert (
        lines[0].record["request"]
        == json.loads((mount.path / ".layerfs/errors").read_text().splitlines()[0])["request"]
    )
    assert (found["path"], found["operation"]) == ("other", "lookup")
    assert (found["error"], found["kind"]) in (("EIO", "BackendFailure"), ("ETIMEDOUT", "DeadlineExceeded"))
    assert "reached" in found["advice"]
    status = json.loads((mount.path / ".layerfs/status.json").read_text())
    assert status["backend"]["driver"] == "gcs"
    assert status["backend"]["requests"]["Publish"]["count"] == 1
    assert status["uploads_committed"] == 1


@pytest.mark.local("a disk that is frozen")
def test_a_path_that_is_waited_for(storage: Storage, tmp_path: Path, watchdog: None) -> None:
    """Of what has no answer yet `why` says that it waits, and does not blame the daemon."""
    with LoopFilesystem(tmp_path / "disk", mebibytes=32) as disk:
        storage = Storage.create(disk.path / "storage")
        storage.make_repository("app")
        with Mount(storage.root, tmp_path / "mnt", "--operation-timeout", "20") as mount:
            disk.freeze()
            client = Child(os.mkdir, mount.path / "app/stuck")
            wait_until(lambda: _waits(mount, "app/stuck"), "it waits")
            # Its directory is locked by the kernel, so looking at it takes as long.
            text = run(COMMAND, "why", mount.path / "app/stuck").stdout
            disk.thaw()
            assert client.wait(20).is_ok
    first, *_ = text.splitlines()
    assert first == "mkdir 'app/stuck': no answer yet"
    assert "The storage did not answer in time" in text
    assert "kill" not in text


def test_a_read_that_waits_for_its_store(mounts: Callable[..., Mount], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shown though the layer itself is there and can be looked at."""
    for name, value in gateway().environment.items():
        monkeypatch.setenv(name, value)
    with S3Proxy(gateway().endpoint) as proxy:
        source = f"s3://{BUCKET}/why-waits?endpoint_url={proxy.url}&read_timeout=3"
        mount = mounts(source, "--create", "--metadata-ttl", "0")
        os.mkdir(mount.path / "app")
        append(mount.path / "app/_uploads/layer", DATA)
        layer = mount.path / "app/_layers" / DIGEST
        os.rename(mount.path / "app/_uploads/layer", layer)
        proxy.fail("stall", "GetObject", times=1000, suffix="/data")
        client = Child(layer.read_bytes)
        wait_until(lambda: _waits(mount, f"app/_layers/{DIGEST}"), "it waits")
        text = run(COMMAND, "why", layer).stdout
        proxy.heal()
        assert client.wait(30).is_ok
    assert text.startswith(f"read 'app/_layers/{DIGEST}': no answer yet\n")
    assert "The storage did not answer in time" in text


def _waits(mount: Mount, path: str) -> bool:
    status = json.loads((mount.path / ".layerfs/status.json").read_text())
    return any(each["path"] == path and each["seconds"] >= 1 for each in status["under_way"])


def test_there_are_enough_faults() -> None:
    """No two of them are the same errno for the same reason."""
    assert len(FAULTS) >= 20
    assert len({(fault.error, fault.reason) for fault in FAULTS.values()}) == len(FAULTS)
    assert {fault.error for fault in FAULTS.values()} <= set(errno.errorcode.values())


def test_a_place_without_faults(storage: Storage, mounts: Callable[..., Mount]) -> None:
    """Says whether it is there, and that nothing failed."""
    storage.make_repository("library/alpine")
    answer = why(mounts(storage).path / "library")
    assert answer == {"path": "library", "exists": True, "failures": []}


def test_a_path_that_is_in_no_mount(tmp_path: Path) -> None:
    """One line, and exit code 1."""
    result = run(COMMAND, "why", tmp_path, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert "is in no mount of layerfs" in result.stderr
    assert shutil.which("layerfs", path=os.path.dirname(COMMAND))
