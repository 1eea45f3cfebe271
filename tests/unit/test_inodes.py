"""The inode table: numbers live exactly as long as the kernel knows them, and blobs have the ones of their digests."""

from __future__ import annotations

from collections.abc import Hashable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from layerfs.digest import Digest
from layerfs.errors import StaleInode
from layerfs.view.inodes import ROOT_INO, InodeTable
from layerfs.view.nodes import Attributes, Ino, Node


class Named(Node):
    """A node that is nothing but its key."""

    def __init__(self, key: Hashable) -> None:
        self.path = str(key)
        self._key = key

    @property
    def key(self) -> Hashable:
        return self._key

    async def attributes(self) -> Attributes:
        raise NotImplementedError


ROOT = Named("root")
UPLOAD = Named(("upload", "a", "uuid"))

A = Digest("sha256", "1" * 64)
#: Begins like `A`, further than a number of 64 bits can tell.
A_TWIN = Digest("sha256", "1" * 63 + "2")
B = Digest("sha256", "2" * 64)


@pytest.fixture
def inodes() -> InodeTable:
    """A table with nothing but the root."""
    return InodeTable(ROOT)


def tell(inodes: InodeTable, node: Node) -> Ino:
    """What an answer to a lookup does."""
    ino = inodes.ino(node)
    inodes.remember(ino, node)
    return ino


def test_the_root_stays(inodes: InodeTable) -> None:
    """However often the kernel says that it forgets it."""
    inodes.forget(ROOT_INO, 1000)
    inodes.discard_unknown(ROOT_INO)
    assert inodes.node(ROOT_INO) is ROOT


def test_an_inode_lives_as_long_as_its_lookups(inodes: InodeTable) -> None:
    """Told three times: it is there until the third is given back."""
    for _ in range(3):
        ino = tell(inodes, UPLOAD)
    inodes.forget(ino, 2)
    assert inodes.node(ino) is UPLOAD
    inodes.forget(ino, 1)
    with pytest.raises(StaleInode):
        inodes.node(ino)
    assert len(inodes) == 1


def test_forgetting_what_is_not_known(inodes: InodeTable) -> None:
    """Changes nothing, and raises nothing."""
    ino = tell(inodes, UPLOAD)
    inodes.forget(Ino(999), 1)
    inodes.forget(ino, 5)
    inodes.forget(ino, 1)
    assert len(inodes) == 1


def test_a_number_that_nobody_was_told_of(inodes: InodeTable) -> None:
    """It is dropped when the entry did not fit, but one that is known stays."""
    known = tell(inodes, UPLOAD)
    for node in (UPLOAD, Named("new")):
        inodes.discard_unknown(inodes.ino(node))
    assert inodes.node(known) is UPLOAD
    assert len(inodes) == 2


def test_the_newest_node_stands_for_the_inode(inodes: InodeTable) -> None:
    """Another object for the same file, with what was seen of it last."""
    ino = tell(inodes, UPLOAD)
    newer = Named(UPLOAD.key)
    assert tell(inodes, newer) == ino
    assert inodes.node(ino) is newer


def test_numbers_are_not_used_again(inodes: InodeTable) -> None:
    """An open file of an upload that is gone is not mistaken for the next upload."""
    numbers = []
    for _ in range(3):
        numbers.append(tell(inodes, UPLOAD))
        inodes.forget(numbers[-1], 1)
    assert len(set(numbers)) == 3


def test_the_number_of_a_blob_is_that_of_its_digest() -> None:
    """The same in another table, and after it was forgotten."""
    first, second = InodeTable(ROOT), InodeTable(ROOT)
    tell(second, UPLOAD)
    ino = tell(first, Named(A))
    assert tell(second, Named(A)) == ino
    first.forget(ino, 1)
    assert tell(first, Named(A)) == ino
    assert tell(first, Named(B)) != ino


def test_digests_that_begin_alike(inodes: InodeTable) -> None:
    """Two files, with two numbers, that go in any order."""
    first, second = tell(inodes, Named(A)), tell(inodes, Named(A_TWIN))
    assert first != second
    inodes.forget(first, 1)
    assert inodes.node(second).key == A_TWIN
    assert tell(inodes, Named(A_TWIN)) == second
    assert tell(inodes, Named(A)) == first


def test_an_upload_becomes_a_blob(inodes: InodeTable) -> None:
    """Its number leads to the blob, and lookups of the blob get the number of the digest."""
    upload, layer = tell(inodes, UPLOAD), Named(A)
    inodes.rebind(UPLOAD, layer)
    assert inodes.node(upload) is layer
    assert tell(inodes, layer) == tell(InodeTable(ROOT), layer)


def test_an_upload_becomes_a_blob_that_is_known(inodes: InodeTable) -> None:
    """Both numbers lead to the blob, and each goes by itself."""
    upload, blob = tell(inodes, UPLOAD), tell(inodes, Named(A))
    inodes.rebind(UPLOAD, Named(A))
    assert inodes.node(upload).key == inodes.node(blob).key == A
    inodes.forget(blob, 1)
    assert inodes.node(upload).key == A
    assert tell(inodes, Named(A)) == blob
    inodes.forget(upload, 1)
    assert inodes.node(blob).key == A


def test_an_upload_that_the_kernel_does_not_know(inodes: InodeTable) -> None:
    """Nothing has to be changed when it becomes a blob."""
    inodes.rebind(UPLOAD, Named(A))
    assert len(inodes) == 1


def test_an_upload_of_the_same_id(inodes: InodeTable) -> None:
    """Begun after the first has become a blob, it is another file."""
    upload = tell(inodes, UPLOAD)
    inodes.rebind(UPLOAD, Named(A))
    assert tell(inodes, Named(UPLOAD.key)) != upload
    assert inodes.node(upload).key == A


KEYS: list[Hashable] = [("upload", "a", "1"), ("upload", "a", "2"), A, A_TWIN, B]


class InodeMachine(RuleBasedStateMachine):
    """Against two dicts: what each number is, and how often the kernel was told of it."""

    def __init__(self) -> None:
        super().__init__()
        self.inodes = InodeTable(ROOT)
        self.keys: dict[Ino, Hashable] = {}
        self.lookups: dict[Ino, int] = {}
        #: Numbers whose file has become another; they are no answer to a lookup any more.
        self.rebound: set[Ino] = set()

    @rule(key=st.sampled_from(KEYS))
    def lookup(self, key: Hashable) -> None:
        ino = tell(self.inodes, Named(key))
        known = [other for other, its in self.keys.items() if its == key and other not in self.rebound]
        assert known in ([], [ino])
        assert self.keys.get(ino, key) == key
        self.keys[ino] = key
        self.lookups[ino] = self.lookups.get(ino, 0) + 1

    @rule(key=st.sampled_from(KEYS))
    def list_without_room(self, key: Hashable) -> None:
        self.inodes.discard_unknown(self.inodes.ino(Named(key)))

    @rule(data=st.data(), count=st.integers(1, 3))
    def forget(self, data: st.DataObject, count: int) -> None:
        ino = data.draw(st.sampled_from([Ino(77), *self.keys]))
        self.inodes.forget(ino, count)
        if ino in self.keys:
            self.lookups[ino] -= count
            if self.lookups[ino] <= 0:
                del self.keys[ino], self.lookups[ino]
                self.rebound.discard(ino)

    @rule(upload=st.sampled_from(KEYS[:2]), blob=st.sampled_from(KEYS[2:]))
    def finish(self, upload: Hashable, blob: Hashable) -> None:
        self.inodes.rebind(Named(upload), Named(blob))
        for ino, key in self.keys.items():
            if key == upload:
                self.keys[ino] = blob
                self.rebound.add(ino)

    @invariant()
    def every_number_is_what_it_is(self) -> None:
        assert len(self.inodes) == 1 + len(self.keys)
        for ino, key in self.keys.items():
            assert self.inodes.node(ino).key == key


TestInodes = InodeMachine.TestCase
TestInodes.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
