"""What single calls on `_oci` do: the rules that make clients work, and keep them from harming each other."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.bounded import attempt
from harness.clients_layouts import (
    REF_NAME,
    Descriptor,
    Image,
    assert_complete,
    blob_path,
    blobs_of,
    index_of,
    read_index,
    tagged,
    tags_of,
)
from harness.clients_target import Images
from harness.commands import opened, shell, wait_until, write_all
from harness.images import OCI_IMAGE, digest, encode, oci_image, oci_index
from harness.mount import Mount
from harness.storage import Storage
from harness.stores import Store
from harness.tagged import TaggedMount, TaggedRepository

LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


class Room(TaggedRepository):
    """A new, empty repository of a mount, and its layout."""

    @property
    def layout(self) -> Path:
        return self.path / "_oci"

    @property
    def index(self) -> Path:
        return self.layout / "index.json"

    def blob(self, name: str) -> Path:
        """By digest or hexadecimal digits."""
        return self.layout / "blobs/sha256" / name.removeprefix("sha256:")

    def put(self, image: Image, *tags: str) -> None:
        """Pushes an image in the plainest way, with these tags beside those that are there."""
        for name, content in image.content.items():
            blob_path(self.layout, name).write_bytes(content)
        if tags:
            self.write_index(*read_index(self.layout), *(tagged(image.descriptor, tag) for tag in tags))

    def write_index(self, *entries: Descriptor) -> None:
        self.index.write_bytes(index_of(*entries))


class Rooms(TaggedMount):
    """A small storage with a mount, for all tests of this module."""

    def new_room(self) -> Room:
        self._count += 1
        room = Room(self.mount, self.storage, f"tests/r{self._count}")
        self.storage.make_repository(room.name)
        return room


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Iterator[Rooms]:
    rooms = Rooms(tmp_path_factory.mktemp("rooms"), store=store)
    with rooms.mount:
        yield rooms


@pytest.fixture(scope="module")
def deletable_rooms(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Iterator[Rooms]:
    rooms = Rooms(tmp_path_factory.mktemp("deletable-rooms"), "--allow-delete", store=store)
    with rooms.mount:
        yield rooms


@pytest.fixture
def room(rooms: Rooms, watchdog: None) -> Iterator[Room]:
    """On a mount with default options."""
    yield rooms.new_room()
    rooms.check()


@pytest.fixture
def deletable(deletable_rooms: Rooms, watchdog: None) -> Iterator[Room]:
    """On a mount with --allow-delete."""
    yield deletable_rooms.new_room()
    deletable_rooms.check()


@contextmanager
def nothing_changes(room: Room) -> Iterator[None]:
    """The body changes nothing in storage, and nothing of what is shown."""
    shown = read_index(room.layout)
    with room.unchanged():
        yield
    assert read_index(room.layout) == shown


# --- the index: how it is written --------------------------------------------------------------------------------


def in_place(index: Path, content: bytes) -> None:
    index.write_bytes(content)


def by_rename(index: Path, content: bytes) -> None:
    temporary = index.with_name("index.json.123.tmp")
    temporary.write_bytes(content)
    os.rename(temporary, index)


def by_rename_from_directory(index: Path, content: bytes) -> None:
    directory = index.with_name(".umoci-1")
    directory.mkdir()
    (directory / "index-2").write_bytes(content)
    os.rename(directory / "index-2", index)
    directory.rmdir()


def by_overwriting(index: Path, content: bytes) -> None:
    """First the bytes, then the length."""
    with opened(index, os.O_RDWR | os.O_CREAT) as descriptor:
        os.pread(descriptor, 1 << 20, 0)
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))


def by_truncating_first(index: Path, content: bytes) -> None:
    with opened(index, os.O_WRONLY) as descriptor:
        os.ftruncate(descriptor, 0)
        write_all(descriptor, content)


def by_a_shell(index: Path, content: bytes) -> None:
    """`cat > index.json`: closed once before anything is written."""
    shell('printf %s "$2" > "$1"', index, content.decode())


def in_pieces(index: Path, content: bytes) -> None:
    with opened(index, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
        for start in range(0, len(content), 100):
            write_all(descriptor, content[start : start + 100])


WAYS = [in_place, by_rename, by_rename_from_directory, by_overwriting, by_truncating_first, by_a_shell, in_pieces]


@pytest.mark.parametrize("write", WAYS)
def test_an_index_tags(room: Room, images: Images, write: Callable[[Path, bytes], None]) -> None:
    """Whatever way it is written, an index tags what it names, in storage, and without touching other tags."""
    old, new = images.image(), images.image()
    room.put(old, "old", "v1")
    room.put(new)
    entries = [tagged(old.descriptor, "old"), tagged(new.descriptor, "v1"), tagged(new.descriptor, "v2")]
    write(room.index, index_of(*entries))
    assert room.stored_tags == {"old": old.digest, "v1": new.digest, "v2": new.digest}
    assert_complete(room.layout, "v2", new)
    assert room.storage.uploads(room.name) == []


HALF_AN_INDEX = b'{"schemaVersion":2,"manifests":['
BAD_INDEXES = [
    b"not JSON at all",
    b"[]",
    b'{"manifests":[]}',
    b'{"schemaVersion":2,"manifests":{}}',
    b'{"schemaVersion":2,"manifests":[{}]}',
]


@pytest.mark.parametrize(
    ("write", "content"),
    [*((write, HALF_AN_INDEX) for write in WAYS), *((in_place, content) for content in BAD_INDEXES)],
)
def test_a_bad_index(room: Room, images: Images, write, content: bytes) -> None:
    """It is refused at close, or by the rename, and nothing has changed."""
    room.put(images.image(), "v1")
    before = room.stored_tags
    if write is by_a_shell:  # bash does not look at what close says
        with room.mount.refuses("EINVAL"):
            write(room.index, content)
    else:
        with room.mount.refused(errno.EINVAL):
            write(room.index, content)
    _remove_scratch(room)
    assert room.stored_tags == before
    assert tags_of(room.layout) == before
    assert room.storage.uploads(room.name) == []


def _remove_scratch(room: Room) -> None:
    """What a refused rename has left."""
    for path in (room.layout / "index.json.123.tmp", room.layout / ".umoci-1/index-2"):
        if path.exists():
            path.unlink()
    if (room.layout / ".umoci-1").exists():
        (room.layout / ".umoci-1").rmdir()


@pytest.mark.parametrize("name", ["", "a b", "docker.io/library/base:v1", ".hidden", "v1/v2", "x" * 129, "…"], ids=repr)
def test_a_name_that_is_no_tag(room: Room, images: Images, name: str) -> None:
    """An entry whose name cannot be a tag is EINVAL; one with an empty name has none."""
    image = images.image()
    room.put(image, "v1")
    content = index_of(*read_index(room.layout), tagged(image.descriptor, name))
    if not name:
        room.index.write_bytes(content)
    else:
        with nothing_changes(room), room.mount.refused(errno.EINVAL):
            room.index.write_bytes(content)
    assert set(room.stored_tags) == {"v1"}


def test_an_empty_write_is_none(room: Room, images: Images) -> None:
    """`: > index.json`, `touch`, and opening for writing without a write change nothing."""
    image = images.image()
    room.put(image, "v1")
    with nothing_changes(room):
        shell(': > "$1"; touch "$1"', room.index)
        for flags in (os.O_WRONLY, os.O_WRONLY | os.O_TRUNC, os.O_RDWR, os.O_WRONLY | os.O_CREAT | os.O_TRUNC):
            os.close(os.open(room.index, flags))


def test_others_see_the_old_index_meanwhile(room: Room, images: Images) -> None:
    """Whoever reads while another writes has the index as it was; each handle has bytes of its own."""
    image = images.image()
    room.put(image, "v1")
    before = room.index.read_bytes()
    with opened(room.index, os.O_RDWR | os.O_TRUNC) as descriptor:
        assert room.index.read_bytes() == before
        write_all(descriptor, b'{"schemaVersion":2,')
        assert room.index.read_bytes() == before
        assert os.stat(room.index).st_size == len(before)
        os.pwrite(descriptor, index_of(tagged(image.descriptor, "v2")), 0)
    assert tags_of(room.layout) == {"v1": image.digest, "v2": image.digest}


def test_the_index_says_its_size(room: Room, images: Images) -> None:
    """`stat` and `fstat` give what can be read, for clients that read as much as the size says."""
    for number in range(3):
        room.put(images.image(0), f"v{number}")
        content = room.index.read_bytes()
        with opened(room.index, os.O_RDONLY) as descriptor:
            assert os.fstat(descriptor).st_size == os.stat(room.index).st_size == len(content)


def test_the_index_is_stable(room: Room, images: Images) -> None:
    """Read again, in whatever order its tags were made, it is the same text."""
    image = images.image(0)
    for tag in ("b", "a", "v10", "v9"):
        room.put(image, tag)
    texts = {room.index.read_bytes() for _ in range(3)}
    assert len(texts) == 1


# --- the index: what must be there -------------------------------------------------------------------------------


def test_a_tag_without_its_manifest(room: Room, images: Images) -> None:
    """ENOLINK at close, and nothing has changed, not even for other tags in the same index."""
    there, missing = images.image(), images.image()
    room.put(there, "v1")
    with nothing_changes(room), room.mount.refused(errno.ENOLINK):
        room.write_index(
            tagged(there.descriptor, "v1"), tagged(there.descriptor, "v2"), tagged(missing.descriptor, "v3")
        )


@pytest.mark.parametrize("part", ["config", "first layer", "last layer"])
def test_a_tag_without_a_blob(room: Room, images: Images, part: str) -> None:
    """The same if a layer or the configuration is missing; once it is there, the same write succeeds."""
    image = images.image()
    missing = list(image.blobs)[["config", "first layer", "last layer"].index(part)]
    for name, content in image.content.items():
        if name != missing:
            blob_path(room.layout, name).write_bytes(content)
    with nothing_changes(room), room.mount.refused(errno.ENOLINK):
        room.write_index(tagged(image.descriptor, "v1"))
    room.blob(missing).write_bytes(image.blobs[missing])
    room.write_index(tagged(image.descriptor, "v1"))
    assert_complete(room.layout, "v1", image)


def test_an_index_of_which_a_blob_is_missing(room: Room, images: Images) -> None:
    """Also what is below an index of images must be there."""
    image = images.index()
    missing = next(iter(image.blobs))
    for name, content in image.content.items():
        if name != missing:
            blob_path(room.layout, name).write_bytes(content)
    with nothing_changes(room), room.mount.refused(errno.ENOLINK):
        room.write_index(tagged(image.descriptor, "v1"))
    room.blob(missing).write_bytes(image.blobs[missing])
    room.write_index(tagged(image.descriptor, "v1"))
    assert_complete(room.layout, "v1", image)
    assert room.stored_revisions == set(image.manifests)


def test_an_index_of_manifests_in_any_order(room: Room, images: Images) -> None:
    """An index may arrive before the images that it names, and they before their layers."""
    image = images.index()
    for name, content in reversed(image.content.items()):
        blob_path(room.layout, name).write_bytes(content)
    room.write_index(tagged(image.descriptor, "v1"))
    assert_complete(room.layout, "v1", image)
    assert room.stored_revisions == set(image.manifests)


def test_a_manifest_is_none_before_an_index_names_it(room: Room, images: Images) -> None:
    """A manifest's bytes may be anybody's blob: a revision it becomes with its tag, or with an entry without one."""
    one, two = images.image(), images.image()
    room.put(one)
    room.put(two)
    assert room.stored_revisions == set()
    assert room.manifests == []
    room.write_index(tagged(one.descriptor, "v1"))
    assert room.stored_revisions == {one.digest}
    room.write_index(tagged(one.descriptor, "v1"), two.descriptor)
    assert room.stored_revisions == {one.digest, two.digest}
    assert tags_of(room.layout) == {"v1": one.digest}


def test_a_blob_that_is_no_manifest(room: Room, images: Images) -> None:
    """An entry that names a layer is refused, and the layer is no manifest after that."""
    image = images.image()
    room.put(image, "v1")
    layer = next(reversed(image.blobs))
    descriptor = {"mediaType": OCI_IMAGE, "digest": layer, "size": len(image.blobs[layer])}
    with nothing_changes(room), room.mount.refused(errno.EINVAL, errno.ENOLINK):
        room.write_index(tagged(image.descriptor, "v1"), tagged(descriptor, "v2"))


# --- the index: several writers ----------------------------------------------------------------------------------


def in_another_process(action: Callable[[], object]) -> None:
    outcome = attempt(action)
    assert outcome.is_ok, outcome.name


class Client:
    """A process that reads the index when it is made, and writes it with one more tag later, when it is told."""

    def __init__(self, room: Room, change: Callable[[list[Descriptor]], list[Descriptor]]) -> None:
        self._go, self._told = os.pipe()
        has_read, self._has_read = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            self._serve(room, change)
        os.close(self._has_read)
        os.read(has_read, 1)
        os.close(has_read)

    def _serve(self, room: Room, change: Callable[[list[Descriptor]], list[Descriptor]]) -> None:
        try:
            os.close(self._told)
            entries = read_index(room.layout)
            os.write(self._has_read, b".")
            os.read(self._go, 1)
            room.write_index(*change(entries))
        except BaseException:  # noqa: BLE001 the exit code says it
            os._exit(1)
        os._exit(0)

    def write(self) -> None:
        """Lets it write; returns when it has ended."""
        os.write(self._told, b".")
        os.close(self._told)
        os.close(self._go)
        assert os.waitpid(self._pid, 0)[1] == 0, "the client failed"


def test_two_writers_with_the_same_base(room: Room, images: Images) -> None:
    """Both read, one writes, the other writes: the second has not seen the first one's tag, and it stays."""
    image = images.image()
    room.put(image, "v1")
    clients = [
        Client(room, lambda entries, tag=tag: [*entries, tagged(image.descriptor, tag)]) for tag in ("v2", "v3", "v4")
    ]
    for client in clients:
        client.write()
    assert set(room.stored_tags) == {"v1", "v2", "v3", "v4"}


def test_a_stale_copy_does_not_move_a_tag_back(room: Room, images: Images) -> None:
    """One client has read that v1 is the old image; meanwhile v1 was moved; it writes what it knows, and v1 stays."""
    old, new = images.image(), images.image()
    room.put(old, "v1")
    room.put(new)
    stale = Client(room, lambda entries: [*entries, tagged(new.descriptor, "v2")])
    in_another_process(lambda: room.write_index(tagged(new.descriptor, "v1")))
    stale.write()
    assert room.stored_tags == {"v1": new.digest, "v2": new.digest}


def test_what_was_removed_stays_removed(deletable: Room, images: Images) -> None:
    """With --allow-delete: a stale copy brings nothing back that was removed meanwhile."""
    image = images.image()
    deletable.put(image, "v1", "v2")
    stale = Client(deletable, lambda entries: [*entries, tagged(image.descriptor, "v3")])
    in_another_process(lambda: os.unlink(deletable.tag("v1")))
    stale.write()
    assert set(deletable.stored_tags) == {"v2", "v3"}


def test_threads_of_a_client_are_one_client(deletable: Room, images: Images) -> None:
    """Go reads in one thread and writes in another: what the process has read and left out is removed, and no more."""
    image = images.image()
    deletable.put(image, "v1", "v2")
    has_read, go = os.pipe(), os.pipe()

    def client() -> None:
        entries: list[Descriptor] = []
        reader = threading.Thread(target=lambda: entries.extend(read_index(deletable.layout)))
        reader.start()
        reader.join()
        os.write(has_read[1], b".")
        os.read(go[0], 1)
        kept = [entry for entry in entries if entry["annotations"][REF_NAME] != "v1"]
        deletable.write_index(*kept, tagged(image.descriptor, "mine"))

    def other() -> None:
        os.read(has_read[0], 1)
        deletable.write_index(*read_index(deletable.layout), tagged(image.descriptor, "others"))
        os.write(go[1], b".")

    pid = os.fork()
    if not pid:
        try:
            client()
        finally:
            os._exit(0)
    other()
    os.waitpid(pid, 0)
    for end in (*has_read, *go):
        os.close(end)
    assert set(deletable.stored_tags) == {"v2", "mine", "others"}


def test_a_writer_that_has_read_nothing(deletable: Room, images: Images) -> None:
    """As `jq … > new; mv new index.json` by two programs: what it left out may be what it never saw, and stays."""
    image = images.image()
    deletable.put(image, "v1")

    def write() -> None:
        with opened(deletable.index, os.O_WRONLY | os.O_TRUNC) as descriptor:
            write_all(descriptor, index_of(tagged(image.descriptor, "v3")))
            in_another_process(
                lambda: deletable.write_index(*read_index(deletable.layout), tagged(image.descriptor, "v2"))
            )

    in_another_process(write)
    assert set(deletable.stored_tags) == {"v1", "v2", "v3"}


# --- the index: removing -----------------------------------------------------------------------------------------


def test_a_tag_that_is_left_out_stays(room: Room, images: Images) -> None:
    """Without --allow-delete; what is added in the same write is added."""
    image = images.image()
    room.put(image, "v1", "v2")
    room.write_index(tagged(image.descriptor, "v3"))
    assert set(room.stored_tags) == {"v1", "v2", "v3"}


def test_a_tag_that_is_left_out_is_removed(deletable: Room, images: Images) -> None:
    """With --allow-delete; its manifest stays."""
    image = images.image()
    deletable.put(image, "v1", "v2")
    deletable.write_index(tagged(image.descriptor, "v2"))
    assert set(deletable.stored_tags) == {"v2"}
    deletable.write_index()
    assert deletable.stored_tags == {}
    assert deletable.stored_revisions == {image.digest}


@pytest.mark.parametrize("name", ["index.json", "oci-layout", "blobs", "blobs/sha256"])
def test_what_makes_a_layout_cannot_be_removed(deletable: Room, name: str) -> None:
    """Neither with --allow-delete nor by rmdir."""
    path = deletable.layout / name
    with deletable.mount.refused(errno.EPERM, errno.EBUSY, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR):
        os.rmdir(path) if path.is_dir() else os.unlink(path)
    assert path.exists()


# --- blobs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["_oci/oci-put-blob123", "_oci/ingest/abc_123", "_oci/blobs/sha256/123.tmp", "_oci/.umoci-1/blob-1"]
)
def test_a_temporary_file_becomes_a_blob(room: Room, payload, place: str) -> None:
    """Renamed to its digest it is a layer of the repository, wherever in the layout it was written."""
    content = payload(100_000)
    temporary = room.path / place
    if not temporary.parent.exists():
        temporary.parent.mkdir()
    with opened(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600) as descriptor:
        write_all(descriptor, content)
        assert os.fstat(descriptor).st_size == len(content)
        os.fsync(descriptor)
        os.fchmod(descriptor, 0o644)
        os.fchown(descriptor, os.stat(room.layout).st_uid, os.stat(room.layout).st_gid)
        os.utime(descriptor, (1, 1))
    os.rename(temporary, room.blob(digest(content)))
    assert not temporary.exists()
    room.assert_stored(content)
    assert room.blob(digest(content)).read_bytes() == content


def test_a_temporary_file_of_other_bytes(room: Room, payload) -> None:
    """EBADMSG; the upload is as it was, and can still become what it is."""
    content = payload(50_000)
    temporary = room.layout / "oci-put-blob1"
    temporary.write_bytes(content)
    with room.mount.refused(errno.EBADMSG):
        os.rename(temporary, room.blob(digest(b"something else")))
    assert not room.blob(digest(b"something else")).exists()
    assert temporary.read_bytes() == content
    os.rename(temporary, room.blob(digest(content)))
    room.assert_stored(content)


def test_a_blob_that_is_there_already(room: Room, payload) -> None:
    """The rename succeeds, and the temporary file is gone."""
    content = payload(50_000)
    for _ in range(2):
        (room.layout / "oci-put-blob1").write_bytes(content)
        os.rename(room.layout / "oci-put-blob1", room.blob(digest(content)))
    room.assert_stored(content)


def test_a_blob_written_at_its_name(room: Room, payload) -> None:
    """Created, or truncated and written again while others read it: committed when it is closed."""
    content = payload(100_000)
    path = room.blob(digest(content))
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
        write_all(descriptor, content[:50_000])
        assert not room.storage.blob(digest(content)).exists()
        write_all(descriptor, content[50_000:])
    room.assert_stored(content)
    with opened(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666) as descriptor:
        assert path.read_bytes() == content
        write_all(descriptor, content)
    room.assert_stored(content)


def test_a_shell_writes_a_blob_at_its_name(room: Room, payload, tmp_path: Path) -> None:
    """`cat > blobs/sha256/…`: closed before the first byte, which commits nothing."""
    content = payload(100_000)
    (tmp_path / "blob").write_bytes(content)
    shell('cat "$1" > "$2"', tmp_path / "blob", room.blob(digest(content)))
    room.assert_stored(content)


@pytest.mark.parametrize("is_there", [False, True])
def test_wrong_bytes_at_a_name(room: Room, payload, is_there: bool) -> None:
    """EBADMSG at close; there is no such blob, or it is what it was."""
    content = payload(50_000)
    path = room.blob(digest(content))
    if is_there:
        path.write_bytes(content)
    with room.mount.refused(errno.EBADMSG):
        path.write_bytes(content[:-1])
    assert path.exists() == is_there
    assert room.storage.blob(digest(content)).exists() == is_there
    wait_until(lambda: room.storage.uploads(room.name) == [], "the end of what was refused")
    if is_there:
        room.assert_stored(content)


def test_an_empty_blob(room: Room) -> None:
    """The blob of no bytes is one that clients write."""
    empty = digest(b"")
    (room.layout / "oci-put-blob1").touch()
    os.rename(room.layout / "oci-put-blob1", room.blob(empty))
    room.assert_stored(b"")


def test_blobs_are_layers(room: Room, payload) -> None:
    """0444, of the exact size and of the same inode as in `_layers`; those of `_layers` are here."""
    content = payload(1000)
    room.put_layer(content)
    path = room.blob(digest(content))
    assert path.read_bytes() == content
    status, layer = os.stat(path), os.stat(room.layer(digest(content)))
    assert (status.st_mode & 0o777, status.st_size, status.st_ino) == (0o444, 1000, layer.st_ino)
    assert os.listdir(room.layout / "blobs/sha256") == [digest(content)[7:]]
    assert os.getxattr(path, "user.layerfs.digest").decode() == digest(content)


def test_manifests_are_blobs(room: Room) -> None:
    """What a registry has put is in `blobs` as well, by its digest."""
    content = room.image("one")
    name = room.store_manifest(content, "v1")
    assert room.blob(name).read_bytes() == content
    assert name[7:] in os.listdir(room.layout / "blobs/sha256")
    assert tags_of(room.layout) == {"v1": name}
    assert blobs_of(room.layout, name)


def test_sha512(room: Room, payload) -> None:
    """A layout may have blobs by sha512; they are linked under both digests, as everywhere."""
    content = payload(1000)
    name = digest(content, "sha512")
    directory = room.layout / "blobs/sha512"
    if not directory.exists():
        directory.mkdir()
    (room.layout / "oci-put-blob1").write_bytes(content)
    os.rename(room.layout / "oci-put-blob1", directory / name.partition(":")[2])
    room.assert_stored(content, name)
    assert (directory / name.partition(":")[2]).read_bytes() == content


def test_blobs_cannot_be_removed(room: Room, payload) -> None:
    """Without --allow-delete: EPERM, whatever refers to them."""
    content = payload(1000)
    room.blob(digest(content)).write_bytes(content)
    with room.mount.refused(errno.EPERM):
        os.unlink(room.blob(digest(content)))
    with pytest.raises(NotADirectoryError):
        os.rmdir(room.blob(digest(content)))
    room.assert_stored(content)


def make_old(storage: Storage, repository: str, name: str) -> None:
    """More than an hour, as storage has it."""
    for path in (storage.blob(name), storage.link(repository, name)):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3700))


@pytest.mark.local("files can be given another time")
def test_young_blobs_cannot_be_removed(deletable: Room, payload) -> None:
    """With --allow-delete: EBUSY while a client that is pushing may still need them, then the link goes."""
    content = payload(1000)
    path = deletable.blob(digest(content))
    path.write_bytes(content)
    with deletable.mount.refused(errno.EBUSY):
        os.unlink(path)
    make_old(deletable.storage, deletable.name, digest(content))
    os.unlink(path)
    assert not path.exists()
    assert not deletable.storage.link(deletable.name, digest(content)).exists()
    assert deletable.stored(digest(content)) == content


@pytest.mark.local("files can be given another time")
def test_blobs_in_use_cannot_be_removed(deletable: Room, images: Images) -> None:
    """EBUSY for all that a tag leads to, however old it is."""
    image = images.index()
    deletable.put(image, "v1")
    for name in image.blobs:
        make_old(deletable.storage, deletable.name, name)
    for name in image.content:
        with deletable.mount.refused(errno.EBUSY):
            os.unlink(deletable.blob(name))
    assert_complete(deletable.layout, "v1", image)


@pytest.mark.parametrize("name", ["abc", "A" * 64, "a" * 63, "a" * 65, "g" * 64])
def test_names_that_are_no_digests(room: Room, payload, name: str) -> None:
    """They are temporary: not listed, and never a layer."""
    path = room.layout / "blobs/sha256" / name
    path.write_bytes(payload(100))
    assert path.exists()
    assert os.listdir(path.parent) == []
    assert room.layers == []
    os.unlink(path)


# --- temporary files ---------------------------------------------------------------------------------------------


def test_temporary_files_are_hidden(room: Room) -> None:
    """They are there by name, for other processes too, but no listing of the layout shows them."""
    for path in (room.layout / "oci-put-blob1", room.layout / "blobs/sha256/1.tmp", room.layout / "index.json.tmp"):
        path.write_bytes(b"x")
        assert attempt(path.read_bytes).value == b"x"
    assert sorted(os.listdir(room.layout)) == ["blobs", "index.json", "oci-layout"]
    assert os.listdir(room.layout / "blobs/sha256") == []
    assert len(room.storage.uploads(room.name)) == 3
    for path in (room.layout / "oci-put-blob1", room.layout / "blobs/sha256/1.tmp", room.layout / "index.json.tmp"):
        os.unlink(path)
        assert not path.exists()
    assert room.storage.uploads(room.name) == []


@pytest.mark.parametrize("name", [".umoci-1", "ingest", "ingest/abc", "blobs/sha256/x"])
def test_directories_of_clients(room: Room, name: str) -> None:
    """What a client makes in its directory is listed there; the directory goes when it is empty."""
    directory = room.layout / name
    os.makedirs(directory, exist_ok=True)
    (directory / "one").write_bytes(b"1")
    (directory / "two").write_bytes(b"2")
    assert sorted(os.listdir(directory)) == ["one", "two"]
    with room.mount.tolerates("ENOTEMPTY"), pytest.raises(OSError, match="not empty"):
        os.rmdir(directory)
    os.rename(directory / "one", directory / "three")
    assert sorted(os.listdir(directory)) == ["three", "two"]
    assert (directory / "three").read_bytes() == b"1"
    for path in ("three", "two"):
        os.unlink(directory / path)
    os.rmdir(directory)
    assert sorted(os.listdir(room.layout)) == ["blobs", "index.json", "oci-layout"]


def test_a_temporary_file_over_another(room: Room) -> None:
    """As `startedat.tmp` to `startedat`, twice."""
    (room.layout / "ingest/a").parent.mkdir(exist_ok=True)
    (room.layout / "ingest/a").mkdir()
    for content in (b"one", b"another"):
        (room.layout / "ingest/a/updatedat.tmp").write_bytes(content)
        os.rename(room.layout / "ingest/a/updatedat.tmp", room.layout / "ingest/a/updatedat")
        assert (room.layout / "ingest/a/updatedat").read_bytes() == content
    shell('rm -r "$1"', room.layout / "ingest/a")
    assert room.storage.uploads(room.name) == []


def test_resuming(room: Room, payload) -> None:
    """containerd opens what it has begun again, sees how far it came, reads that, and goes on there."""
    content = payload(100_000)
    path = room.layout / "data"
    path.write_bytes(content[:60_000])
    with opened(path, os.O_RDWR) as descriptor:
        assert os.fstat(descriptor).st_size == 60_000
        assert os.read(descriptor, 1 << 20) == content[:60_000]
        write_all(descriptor, content[60_000:])
    os.rename(path, room.blob(digest(content)))
    room.assert_stored(content)


def test_making_what_is_there(room: Room) -> None:
    """mkdir of the layout, of `blobs`, of an algorithm: EEXIST, which all clients expect."""
    for path in (room.layout, room.layout / "blobs", room.layout / "blobs/sha256"):
        with pytest.raises(FileExistsError):
            path.mkdir()
    (room.layout / "ingest").mkdir(exist_ok=True)
    with pytest.raises(FileExistsError):
        (room.layout / "ingest").mkdir()


def test_a_layout_of_a_repository_that_is_none_yet(rooms: Rooms) -> None:
    """`mkdir -p new/deep/repo/_oci`, which is how clients begin, makes a repository with a layout."""
    path = rooms.mount.path / "brand/new/repo/_oci"
    assert not path.exists()
    os.makedirs(path, exist_ok=True)
    assert read_index(path) == []
    assert (path / "oci-layout").read_bytes() == LAYOUT
    assert os.listdir(path / "blobs/sha256") == []
    rooms.check()


def test_the_layout_file(room: Room) -> None:
    """Written again by every client; what it says is looked at, and anything else is EINVAL."""
    path = room.layout / "oci-layout"
    assert json.loads(path.read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    path.write_bytes(LAYOUT)
    path.write_text('{"imageLayoutVersion": "1.0.0"}\n')
    for content in (b'{"imageLayoutVersion":"2.0.0"}', b"{", b"{}"):
        with nothing_changes(room), room.mount.refused(errno.EINVAL):
            path.write_bytes(content)
    assert path.read_bytes() == LAYOUT


def test_owners_modes_and_times(room: Room, payload) -> None:
    """Accepted and ignored, so that `cp -a`, `tar -x` and `rsync -a` succeed; directories too."""
    content = payload(100)
    temporary, blob = room.layout / "temporary", room.blob(digest(content))
    temporary.write_bytes(content)
    blob.write_bytes(content)
    owner = os.stat(room.layout)
    files = (temporary, blob, room.index, room.layout / "oci-layout")
    for path in (*files, blob.parent, room.layout / "blobs", room.layout):
        os.chmod(path, 0o444 if path in files else 0o755)
        os.utime(path, (1, 1))
        os.chown(path, owner.st_uid, owner.st_gid)
    assert os.stat(blob).st_mode & 0o777 == 0o444
    os.unlink(temporary)


def test_locks_and_syncs(room: Room) -> None:
    """umoci and BuildKit lock by flock, which stays on this machine; containerd syncs directories."""
    (room.layout / "index.json.lock").touch()
    with (
        opened(room.layout / "index.json.lock", os.O_RDONLY) as one,
        opened(room.layout / "index.json.lock", os.O_RDONLY) as two,
    ):
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.unlink(room.layout / "index.json.lock")
    for path in (room.layout, room.layout / "blobs", room.layout / "blobs/sha256"):
        with opened(path, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            os.fsync(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_links_and_special_files(room: Room, payload) -> None:
    """Neither symbolic nor hard links, no FIFOs."""
    content = payload(100)
    blob = room.blob(digest(content))
    blob.write_bytes(content)
    for make in (
        lambda: os.symlink("index.json", room.layout / "link"),
        lambda: os.link(blob, room.layout / "link"),
        lambda: os.mkfifo(room.layout / "link"),
    ):
        with room.mount.refused(errno.EPERM, errno.EINVAL, errno.EXDEV):
            make()
    assert sorted(os.listdir(room.layout)) == ["blobs", "index.json", "oci-layout"]


def test_between_layouts(room: Room, rooms: Rooms, payload) -> None:
    """A temporary file of one repository does not become a blob of another: nobody renames so."""
    other = rooms.new_room()
    content = payload(100)
    (room.layout / "temporary").write_bytes(content)
    with room.mount.refused(errno.EINVAL, errno.EPERM, errno.EXDEV):
        os.rename(room.layout / "temporary", other.blob(digest(content)))
    assert (room.layout / "temporary").read_bytes() == content
    assert other.layers == []
    os.unlink(room.layout / "temporary")


# --- manifests that are not taken --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "manifest",
    [
        encode(oci_image(b"{}", schemaVersion=3)),
        encode(oci_index([])).replace(b'"manifests"', b'"manifests": [], "Manifests"'),
        encode(oci_image(b"{}"))[:-1] + b', "config": {}}',
    ],
    ids=["version", "another case", "a field twice"],
)
def test_manifests_that_a_registry_would_not_take(room: Room, manifest: bytes) -> None:
    """They are blobs, but no index makes them manifests."""
    room.blob(digest(b"{}")).write_bytes(b"{}")
    room.blob(digest(manifest)).write_bytes(manifest)
    descriptor = {"mediaType": OCI_IMAGE, "digest": digest(manifest), "size": len(manifest)}
    with nothing_changes(room), room.mount.refused(errno.EINVAL, errno.ENOLINK):
        room.write_index(tagged(descriptor, "v1"))


# --- one layout for each tag -------------------------------------------------------------------------------------


def test_the_layouts_of_tags(room: Room, images: Images) -> None:
    """Each has its tag only, and the blobs; `tags` lists them, and `_oci` does not list `tags`."""
    one, two = images.image(), images.image()
    room.put(one, "v1")
    room.put(two, "v2", "latest")
    tags = room.layout / "tags"
    assert sorted(os.listdir(tags)) == ["latest", "v1", "v2"]
    for tag, image in (("v1", one), ("v2", two), ("latest", two)):
        assert_complete(tags / tag, tag, image)
        assert tags_of(tags / tag) == {tag: image.digest}
        assert (tags / tag / "oci-layout").read_bytes() == LAYOUT
        assert sorted(os.listdir(tags / tag)) == ["blobs", "index.json", "oci-layout"]
    with pytest.raises(FileNotFoundError):
        os.stat(tags / "v3")
    room.put(two, "v1")
    assert tags_of(tags / "v1") == {"v1": two.digest}


def changes(layout: Path, new_blob: bytes) -> list[Callable[[], object]]:
    """Every way to change something in a layout that has a blob."""
    blob = next((layout / "blobs/sha256").iterdir())
    return [
        lambda: (layout / "index.json").write_bytes(index_of()),
        lambda: os.open(layout / "index.json", os.O_RDWR),
        lambda: (layout / "oci-layout").write_bytes(LAYOUT),
        lambda: (layout / "new").write_bytes(b""),
        lambda: (layout / "index.json.lock").touch(),
        lambda: (layout / ".fsverity-check-1").mkdir(),
        lambda: (layout / "ingest").mkdir(),
        lambda: (layout / "blobs/new").mkdir(),
        lambda: (layout / "blobs/sha256/1.tmp").write_bytes(b""),
        lambda: (layout / "blobs/sha256" / digest(new_blob)[7:]).write_bytes(new_blob),
        lambda: os.open(blob, os.O_WRONLY),
        lambda: os.unlink(blob),
        lambda: os.unlink(layout / "index.json"),
        lambda: os.rename(blob, layout / "x"),
        lambda: os.rename(layout / "index.json", layout / "x"),
        lambda: os.rmdir(layout / "blobs"),
        lambda: os.symlink("x", layout / "x"),
        lambda: os.link(blob, layout / "x"),
        lambda: os.chmod(layout / "index.json", 0o600),
        lambda: os.truncate(layout / "index.json", 0),
    ]


def answers(layout: Path) -> list[str]:
    """What each of the changes fails with."""
    found = []
    for change in changes(layout, b"new"):
        try:
            change()
        except OSError as error:
            found.append(errno.errorcode[error.errno or 0])
        else:
            found.append("it succeeded")
    return found


def test_layouts_of_tags_are_read_only(deletable: Room, images: Images) -> None:
    """EROFS for every change, also with --allow-delete."""
    deletable.put(images.image(), "v1")
    with nothing_changes(deletable), deletable.mount.refuses("EROFS"):
        assert set(answers(deletable.layout / "tags/v1")) == {"EROFS"}


@pytest.mark.parametrize("make", [lambda tags: (tags / "v2").mkdir(), lambda tags: (tags / "v2").touch()])
def test_tags_are_not_made_there(room: Room, images: Images, make) -> None:
    room.put(images.image(), "v1")
    with nothing_changes(room), room.mount.refused(errno.EROFS):
        make(room.layout / "tags")
    with nothing_changes(room), room.mount.refused(errno.EROFS):
        os.rmdir(room.layout / "tags/v1")


# --- read-only mounts --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def read_only(fixture_trees: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """Most changes are refused by the kernel already, and leave no line in the log."""
    with Mount(fixture_trees / "storage", tmp_path_factory.mktemp("ro") / "mnt", "--read-only") as mount:
        yield mount
        mount.declare("INFO", "EROFS")
        mount.check_log()


def test_read_only_mounts(read_only: Mount, watchdog: None) -> None:
    """EROFS, and neither EACCES, ENOENT nor ENOSYS: what BuildKit understands when it cannot make its lock."""
    assert set(answers(read_only.path / "base/_oci")) == {"EROFS"}


def test_no_repository_is_made_on_a_read_only_mount(read_only: Mount, watchdog: None) -> None:
    """What skopeo does first with a repository that does not exist."""
    with pytest.raises(OSError, match="Read-only file system"):
        os.makedirs(read_only.path / "new/_oci")


# --- names and the log -------------------------------------------------------------------------------------------


def test_what_is_wrong_is_in_the_log(room: Room, images: Images) -> None:
    """The reason of a refused index says what is missing, or where it is wrong."""
    image = images.image()
    blob_path(room.layout, image.digest).write_bytes(image.manifests[image.digest])
    missing = next(iter(image.blobs))
    with room.mount.refused(errno.ENOLINK):
        room.write_index(tagged(image.descriptor, "v1"))
    assert any(missing in line.text for line in room.mount.read_log()[-3:])
    with room.mount.refused(errno.EINVAL):
        room.index.write_bytes(b'{"schemaVersion": 2, "manifests": [}')
    errors = (room.mount.path / ".layerfs/errors").read_text().splitlines()
    assert re.search(r"index\.json.*EINVAL|EINVAL.*index\.json", errors[-1])


def test_attributes_that_tools_ask_for(room: Room) -> None:
    """`cp -a` and `ls` ask for access lists and labels of everything: EOPNOTSUPP or ENODATA."""
    for path in (room.layout, room.index, room.layout / "oci-layout", room.layout / "blobs/sha256"):
        for name in ("system.posix_acl_access", "security.selinux", "security.capability", "user.other"):
            with pytest.raises(OSError, match=r"supported|No data") as caught:
                os.getxattr(path, name)
            assert caught.value.errno in (errno.EOPNOTSUPP, errno.ENODATA)


def test_the_annotation_is_the_tag(room: Room, images: Images) -> None:
    """Entries have the annotation that names them, and the stored media type."""
    image = images.index()
    room.put(image, "v1")
    [entry] = read_index(room.layout)
    assert entry == tagged(image.descriptor, "v1")
    assert entry["annotations"] == {REF_NAME: "v1"}
