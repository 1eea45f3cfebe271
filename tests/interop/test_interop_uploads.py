"""Uploads that go back and forth between the registry and a mount, and the hash states they leave."""

from __future__ import annotations

import errno
import functools
import os
import tempfile
import threading
from pathlib import Path

import pytest
from harness.commands import append, get_xattr, run, wait_until
from harness.registry import DockerRegistry
from harness.repository import MountedRepository
from harness.sha256 import hash_state
from harness.storage import Storage, digest_of
from harness.strace import dying_at_write

OLD_GOB = bytes.fromhex("63ff810301010a73746174654e756d626572") + b"\x01" * 138


@pytest.fixture
def data(payload) -> bytes:
    """Some content, in an awkward size."""
    return payload(170_001)


def begin_by_http(registry: DockerRegistry, repository: MountedRepository, *chunks: bytes) -> tuple[str, str]:
    """Begins an upload over HTTP; returns its id, and the URL to go on with."""
    url = registry.post(repository.name)
    for chunk in chunks:
        url = registry.patch(url, chunk)
    upload_id = url.partition("?")[0].rpartition("/")[2]
    wait_until(lambda: upload_id in repository.uploads, "the upload on the mount", seconds=2)
    return upload_id, url


def signed_url(registry: DockerRegistry, repository: MountedRepository, name: str) -> str:
    """The URL to go on over HTTP with an upload that the mount shows."""
    upload = repository.upload(name)
    return registry.resume_url(
        repository.name,
        get_xattr(upload, "user.layerfs.upload.uuid"),
        offset=os.stat(upload).st_size,
        started_at=get_xattr(upload, "user.layerfs.upload.startedat"),
    )


# --- begun there, finished here --------------------------------------------------------------------------------------


def test_begun_over_http_finished_by_mv(repository: MountedRepository, registry: DockerRegistry, data: bytes) -> None:
    """POST and PATCH there, `mv` here."""
    upload_id, _url = begin_by_http(registry, repository, data[:100_000], data[100_000:])
    assert os.stat(repository.upload(upload_id)).st_size == len(data)
    run("mv", repository.upload(upload_id), repository.layer(digest_of(data)))
    repository.assert_stored(data)
    assert registry.serves(repository.name, digest_of(data), data)


def test_begun_over_http_continued_and_finished_here(
    repository: MountedRepository, registry: DockerRegistry, data: bytes
) -> None:
    """The size says where to go on."""
    upload_id, _url = begin_by_http(registry, repository, data[:70_001])
    append(repository.upload(upload_id), data[os.stat(repository.upload(upload_id)).st_size :])
    repository.commit(upload_id, digest_of(data))
    repository.assert_stored(data)
    assert registry.serves(repository.name, digest_of(data), data)


def test_only_begun_over_http(repository: MountedRepository, registry: DockerRegistry, data: bytes) -> None:
    """POST there, everything else here."""
    upload_id, _url = begin_by_http(registry, repository)
    append(repository.upload(upload_id), data)
    repository.commit(upload_id, digest_of(data))
    repository.assert_stored(data)


def test_the_registry_forgets_what_was_finished_here(
    repository: MountedRepository, registry: DockerRegistry, data: bytes
) -> None:
    """After `mv` (or `rm`) the registry's client gets 404 for the upload."""
    for end in (lambda name: repository.commit(name, digest_of(data)), lambda name: os.unlink(repository.upload(name))):
        upload_id, url = begin_by_http(registry, repository, data)
        end(upload_id)
        assert registry.request("PATCH", url, b"more").status == 404


# --- begun here, finished there --------------------------------------------------------------------------------------


def test_begun_by_cp_finished_over_http(
    repository: MountedRepository, registry: DockerRegistry, data: bytes, tmp_path
) -> None:
    """`cp` here, PUT there with a signed state; then it is a layer here, and the upload is gone."""
    (tmp_path / "layer").write_bytes(data)
    run("cp", tmp_path / "layer", repository.upload("layer"))
    assert registry.put(signed_url(registry, repository, "layer"), digest_of(data)).status == 201
    assert registry.serves(repository.name, digest_of(data), data)
    wait_until(lambda: os.path.exists(repository.layer(digest_of(data))), "the layer", seconds=3)
    wait_until(lambda: repository.uploads == [], "the upload to be gone", seconds=3)
    repository.assert_stored(data)


def test_begun_by_cp_continued_and_finished_over_http(
    repository: MountedRepository, registry: DockerRegistry, data: bytes
) -> None:
    """Part by `cp` here, the rest by PATCH there."""
    repository.put_upload("layer", data[:99_999])
    url = registry.patch(signed_url(registry, repository, "layer"), data[99_999:])
    assert registry.put(url, digest_of(data)).status == 201
    wait_until(lambda: os.path.exists(repository.layer(digest_of(data))), "the layer", seconds=3)
    repository.assert_stored(data)


@pytest.mark.parametrize("finish", ["over HTTP", "by mv"])
@pytest.mark.parametrize("cuts", [(50_000, 90_000), (64, 128), (63, 100_001), (1, 2)])
def test_back_and_forth(
    repository: MountedRepository, registry: DockerRegistry, data: bytes, finish: str, cuts: tuple[int, int]
) -> None:
    """Part by `cp`, part by PATCH, part by `>>`, and finished by either."""
    first, second = cuts
    repository.put_upload("layer", data[:first])
    registry.patch(signed_url(registry, repository, "layer"), data[first:second])
    wait_until(lambda: os.stat(repository.upload("layer")).st_size == second, "the new size", seconds=3)
    append(repository.upload("layer"), data[second:])
    if finish == "by mv":
        run("mv", repository.upload("layer"), repository.layer(digest_of(data)))
    else:
        assert registry.put(signed_url(registry, repository, "layer"), digest_of(data)).status == 201
        wait_until(lambda: os.path.exists(repository.layer(digest_of(data))), "the layer", seconds=3)
    repository.assert_stored(data)
    assert registry.serves(repository.name, digest_of(data), data)


def test_wrong_digest_over_http_for_what_was_begun_here(
    repository: MountedRepository, registry: DockerRegistry, data: bytes
) -> None:
    """400 there; here the upload is still whole."""
    repository.put_upload("layer", data)
    assert registry.put(signed_url(registry, repository, "layer"), digest_of(b"other")).status == 400
    assert repository.upload("layer").read_bytes() == data
    repository.commit("layer", digest_of(data))
    repository.assert_stored(data)


def test_cancelled_over_http(repository: MountedRepository, registry: DockerRegistry, data: bytes) -> None:
    """DELETE there: the upload is gone here, and the ghost that the registry leaves is not shown."""
    repository.put_upload("layer", data)
    assert registry.request("DELETE", signed_url(registry, repository, "layer")).status == 204
    wait_until(lambda: repository.uploads == [], "the upload to be gone", seconds=3)
    wait_until(lambda: not os.path.exists(repository.upload("layer")), "ENOENT", seconds=3)


@pytest.mark.parametrize("pieces", [1, 4, 9])
def test_killed_here_finished_over_http(mounts, storage: Storage, tmp_path: Path, payload, pieces: int) -> None:
    """The daemon is killed while it writes; the registry goes on from the size of `data`, and its digest is right."""
    data = payload(1_000_000)
    storage.make_repository("r")
    repository = MountedRepository(mounts(storage), storage, "r")
    with DockerRegistry(storage.root, tmp_path / "registry") as registry:
        upload = os.open(repository.upload("layer"), os.O_WRONLY | os.O_CREAT)
        for piece in range(pieces):
            os.write(upload, data[piece * 100_000 : (piece + 1) * 100_000])
            os.fsync(upload)
        repository.mount.kill9()
        with pytest.raises(OSError, match="not connected"):
            os.close(upload)
        (directory,) = storage.uploads("r")
        size = (directory / "data").stat().st_size
        assert size >= pieces * 100_000
        started_at = (directory / "startedat").read_text()
        url = registry.resume_url("r", directory.name, offset=size, started_at=started_at)
        assert registry.put(registry.patch(url, data[size:]), digest_of(data)).status == 201
        assert registry.serves("r", digest_of(data), data)


def test_a_registry_that_runs_as_another_user(mounts, storage: Storage, payload) -> None:
    """layerfs as root makes files that a registry with its own user can go on with, finish and serve."""
    data = payload(200_000)
    with tempfile.TemporaryDirectory(prefix="layerfs-user-") as directory:
        base = Path(directory)
        base.chmod(0o755)
        owned = Storage.create(base / "storage")
        run("chown", "-R", "65534:65534", base / "storage")
        mount = mounts(owned)
        run("mkdir", "-p", mount.path / "team/app")
        repository = MountedRepository(mount, owned, "team/app")
        repository.put_upload("begun", data[:100_000])
        layer = repository.put_layer(payload(1000)).name
        assert run("find", owned.root, "!", "-uid", "65534").stdout == ""
        with DockerRegistry(owned.root, base / "registry", user=65534) as registry:
            url = registry.patch(signed_url(registry, repository, "begun"), data[100_000:])
            assert registry.put(url, digest_of(data)).status == 201
            assert registry.serves("team/app", digest_of(data), data)
            assert registry.head("team/app", layer).status == 200
            registry.push("team/app", payload(500))
        mount.stop()


# --- hash states -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 55, 63, 64, 65, 127, 128, 4096, 70_001])
def test_our_hash_state_is_the_registrys(
    repository: MountedRepository, registry: DockerRegistry, payload, size: int
) -> None:
    """At the same offset our file has the registry's bytes, and those that the standard says."""
    data = payload(size)
    upload_id, _url = begin_by_http(registry, repository, data)
    repository.put_upload("ours", data)
    theirs, ours = (repository.upload_directory(name) / f"hashstates/sha256/{size}" for name in (upload_id, "ours"))
    assert theirs.read_bytes() == hash_state(data)
    assert ours.read_bytes() == hash_state(data)


def test_states_of_every_close(repository: MountedRepository, payload) -> None:
    """Whatever state files there are, each is the state of exactly as many bytes as its name says."""
    data = payload(100_000)
    for start in range(0, len(data), 12_345):
        append(repository.upload("x"), data[start : start + 12_345])
    directory = repository.upload_directory("x") / "hashstates/sha256"
    names = os.listdir(directory)
    assert str(len(data)) in names
    for name in names:
        assert (directory / name).read_bytes() == hash_state(data[: int(name)])


def test_no_state_is_left_that_is_not_true(repository: MountedRepository, payload) -> None:
    """After overwriting, truncating and appending, a state at the exact size is that of the bytes that are there."""
    data = bytearray(payload(50_000))
    repository.put_upload("x", bytes(data))
    changes = [
        lambda path: _overwrite(path, 10_000, b"changed"),
        lambda path: os.truncate(path, 30_000),
        lambda path: append(path, b"more"),
        lambda path: os.truncate(path, 50_000),
        lambda path: _overwrite(path, 60_000, b"hole"),
        lambda path: path.write_bytes(b"all new"),
    ]
    for change in changes:
        change(repository.upload("x"))
        directory = repository.upload_directory("x")
        stored = (directory / "data").read_bytes()
        state = directory / "hashstates/sha256" / str(len(stored))
        assert not state.exists() or state.read_bytes() == hash_state(stored)


def _overwrite(path, offset: int, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, content, offset)
    os.close(descriptor)


OTHER = b"y" * 123_457
TRUE = bytes(range(256)) * 482 + b"z" * 65  # 123,457 bytes as well


@functools.cache
def planted_states() -> dict[str, dict[str, bytes]]:
    """What may stand in `hashstates/sha256` of an upload of TRUE, by what is odd about it."""
    right, other = hash_state(TRUE), hash_state(OTHER)
    size = str(len(TRUE))
    return {
        "right": {size: right},
        "none": {},
        "of-another-offset": {"1000": hash_state(TRUE[:1000])},
        "name-is-no-number": {"abc": right},
        "name-is-hexadecimal": {hex(len(TRUE)): other},
        "name-with-zeros": {f"0{size}": other},
        "wrong-words": {size: right[:4] + bytes(32) + right[36:]},
        "wrong-block": {size: right[:40] + b"Z" + right[41:]},
        "wrong-count": {size: right[:100] + (5).to_bytes(8, "big")},
        "of-other-data": {size: other},
        "old-gob": {size: OLD_GOB},
        "too-short": {size: right[:107]},
        "too-long": {size: right + b"\0"},
        "empty": {size: b""},
        "of-more-than-there-is": {str(len(TRUE) + 5): hash_state(TRUE + b"12345")},
        "of-the-last-bytes-only": {size: hash_state(TRUE[1000:])},
    }


@pytest.mark.parametrize("kind", planted_states())
def test_a_planted_state_never_makes_a_wrong_blob(repository: MountedRepository, kind: str) -> None:
    """Committed as found: the other data's digest is EBADMSG, the right one succeeds, whatever the state says."""
    upload_id = repository.storage.put_upload(repository.name, TRUE, states=planted_states()[kind])
    with repository.mount.refused(errno.EBADMSG):
        repository.commit(upload_id, digest_of(OTHER))
    assert not repository.storage.blob(digest_of(OTHER)).exists()
    repository.commit(upload_id, digest_of(TRUE))
    repository.mount.declare("WARNING")
    repository.assert_stored(TRUE)


@pytest.mark.parametrize("kind", [kind for kind in planted_states() if kind not in ("of-other-data", "right")])
def test_a_broken_state_does_no_harm_where_states_are_trusted(mounts, storage: Storage, kind: str) -> None:
    """With `--trust-hash-states` a state that is wrong never keeps the right digest from succeeding."""
    storage.make_repository("r")
    upload_id = storage.put_upload("r", TRUE, states=planted_states()[kind])
    repository = MountedRepository(mounts(storage, "--trust-hash-states"), storage, "r")
    repository.commit(upload_id, digest_of(TRUE))
    repository.assert_stored(TRUE)


@pytest.mark.parametrize("kind", planted_states())
def test_a_planted_state_is_not_carried_on(repository: MountedRepository, kind: str) -> None:
    """Continued here and then committed: what would follow from the wrong state is EBADMSG, the truth succeeds."""
    upload_id = repository.storage.put_upload(repository.name, TRUE, states=planted_states()[kind])
    append(repository.upload(upload_id), b"tail")
    with repository.mount.refused(errno.EBADMSG):
        repository.commit(upload_id, digest_of(OTHER + b"tail"))
    assert not repository.storage.blob(digest_of(OTHER + b"tail")).exists()
    repository.commit(upload_id, digest_of(TRUE + b"tail"))
    repository.mount.declare("WARNING")
    repository.assert_stored(TRUE + b"tail")


@pytest.mark.parametrize("kind", planted_states())
def test_a_planted_state_is_not_passed_to_the_registry(
    repository: MountedRepository, registry: DockerRegistry, kind: str
) -> None:
    """Continued here, finished there: we leave no state that would make the registry accept wrong bytes."""
    upload_id = repository.storage.put_upload(repository.name, TRUE, states=planted_states()[kind])
    append(repository.upload(upload_id), b"tail")
    repository.mount.declare("WARNING")
    directory = repository.upload_directory(upload_id)
    state = directory / "hashstates/sha256" / str(len(TRUE) + 4)
    assert not state.exists() or state.read_bytes() == hash_state(TRUE + b"tail")
    url = signed_url(registry, repository, upload_id)
    assert registry.put(url, digest_of(OTHER + b"tail")).status == 400
    assert registry.head(repository.name, digest_of(OTHER + b"tail")).status == 404


def test_a_state_of_the_last_bytes_only(repository: MountedRepository, registry: DockerRegistry, data: bytes) -> None:
    """Where the registry had no state to begin with, it leaves one that is true of the last bytes only (a trap)."""
    first, rest = data[:50_000], data[50_000:]
    upload_id = repository.storage.put_upload(repository.name, first)
    registry.patch(signed_url(registry, repository, upload_id), rest)
    directory = repository.upload_directory(upload_id) / "hashstates/sha256"
    assert (directory / str(len(rest))).read_bytes() == hash_state(rest)
    os.truncate(repository.upload(upload_id), len(rest))  # now the trap's name is the exact size
    with repository.mount.refused(errno.EBADMSG):
        repository.commit(upload_id, digest_of(rest))
    repository.commit(upload_id, digest_of(data[: len(rest)]))
    repository.assert_stored(data[: len(rest)])


def test_a_state_of_bytes_that_never_came(mounts, storage: Storage, tmp_path: Path, payload) -> None:
    """The registry dies between a state and its bytes, while the mount has the upload closed; others come then.

    Should the mount die as well, before it has stored a state of its own, the size is that of the registry's state. It
    would believe it, and serve what was never uploaded.
    """
    begun, theirs, ours = payload(50_000), payload(3000), b"o" * 3000
    storage.make_repository("r")
    repository = MountedRepository(mounts(storage), storage, "r")
    registry = DockerRegistry(storage.root, tmp_path / "registry")
    with registry:
        repository.put_upload("layer", begun)
        directory = repository.upload_directory("layer")
        with dying_at_write(registry.pid, directory / "data"), pytest.raises(OSError):
            registry.patch(signed_url(registry, repository, "layer"), theirs)
    assert (directory / "data").read_bytes() == begun
    assert (directory / "hashstates/sha256/53000").read_bytes() == hash_state(begun + theirs)

    upload = os.open(repository.upload("layer"), os.O_RDWR | os.O_APPEND)
    os.write(upload, ours)
    assert os.pread(upload, 3000, 50_000) == ours  # so they are in storage, though not synced
    repository.mount.kill9()
    with pytest.raises(OSError, match="not connected"):
        os.close(upload)
    assert (directory / "data").read_bytes() == begun + ours
    with registry:
        started_at = (directory / "startedat").read_text()
        url = registry.resume_url("r", directory.name, offset=53_000, started_at=started_at)
        assert registry.put(url, digest_of(begun + theirs)).status == 400
        assert not registry.serves("r", digest_of(begun + theirs), begun + ours)
        assert registry.put(url, digest_of(begun + ours)).status == 201
        assert registry.serves("r", digest_of(begun + ours), begun + ours)


# --- at the same time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(5))
def test_mv_while_a_patch_is_in_flight(
    repository: MountedRepository, registry: DockerRegistry, payload, turn: int
) -> None:
    """The registry has the data open for append while we finish: whatever happens, no damaged blob."""
    url = registry.post(repository.name)
    upload_id = url.partition("?")[0].rpartition("/")[2]
    stored = repository.storage.upload(repository.name, upload_id) / "data"
    with registry.held_patch(url) as patch, repository.mount.tolerates("EBUSY", "EBADMSG", "ENOENT"):
        patch.send(payload(131_072))
        wait_until(lambda: stored.stat().st_size >= 100_000, "the registry to write")
        here = stored.read_bytes()
        wait_until(lambda: upload_id in repository.uploads, "the upload on the mount", seconds=2)
        try:
            repository.commit(upload_id, digest_of(here))
        except OSError as exc:
            assert exc.errno in (errno.EBUSY, errno.EBADMSG)
        patch.send(b"damage" * 20_000)
        patch.finish()
    repository.mount.declare("WARNING")
    blob = repository.storage.blob(digest_of(here))
    assert not blob.exists() or blob.read_bytes() == here
    for digest in repository.layers:
        assert digest_of(repository.layer(digest).read_bytes()) == digest


@pytest.mark.parametrize("turn", range(5))
def test_both_finish_at_the_same_time(
    repository: MountedRepository, registry: DockerRegistry, payload, turn: int
) -> None:
    """PUT there and `mv` here of one upload: at least one succeeds, and the blob is right."""
    data = payload(400_000)
    digest = digest_of(data)
    upload_id, url = begin_by_http(registry, repository, data)
    answers: list[int] = []
    putting = threading.Thread(target=lambda: answers.append(registry.put(url, digest).status))
    with repository.mount.tolerates("EBUSY", "ENOENT", "EIO", "EBADMSG"):
        putting.start()
        try:
            repository.commit(upload_id, digest)
            moved = True
        except OSError:
            moved = False
        putting.join()
    repository.mount.declare("WARNING")
    assert moved or answers == [201]
    assert repository.stored(digest) == data
    assert registry.serves(repository.name, digest, data)


@pytest.mark.parametrize("turn", range(5))
def test_both_push_the_same_blob(repository: MountedRepository, registry: DockerRegistry, payload, turn: int) -> None:
    """A push over HTTP and one through the mount of the same blob at the same time: both succeed."""
    data = payload(400_000)
    pushed: list[str] = []
    pushing = threading.Thread(target=lambda: pushed.append(registry.push(repository.name, data)))
    pushing.start()
    repository.put_layer(data, "ours")
    pushing.join()
    repository.mount.declare("WARNING")
    assert pushed == [digest_of(data)]
    assert repository.stored(digest_of(data)) == data
    assert registry.serves(repository.name, digest_of(data), data)
