"""Hash states: byte for byte those of a registry (facts A.6), and resumable by anybody."""

from __future__ import annotations

import hashlib
import struct

import pytest
from harness.sha256 import hash_state
from hypothesis import given
from hypothesis import strategies as st

from layerfs.registry import hashing
from layerfs.registry.hashing import STATE_LENGTH, new_hash, resume_hash

#: What the registry's example in facts A.6 was made of.
EXAMPLE = bytes(range(256)) * 274


@pytest.fixture
def without_libcrypto(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where OpenSSL's library cannot be found."""
    monkeypatch.setattr(hashing, "_libcrypto", lambda: None)


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 127, 128, 129, 1000, 4096, 20_001])
def test_a_state_is_what_go_would_marshal(size: int) -> None:
    """Byte-equal to a state computed independently, at and around the ends of blocks."""
    content = EXAMPLE[:size]
    running = new_hash()
    running.update([content])
    assert running.count == size
    assert running.state() == hash_state(content)


def test_the_example_of_the_registry() -> None:
    """70001 bytes: the marker, the words, 49 pending bytes and the count that a real registry has written."""
    running = new_hash()
    running.update([EXAMPLE[:70001]])
    state = running.state()
    assert state is not None
    assert len(state) == 108
    assert state[:4] == b"sha\x03"
    assert state[4:12] == bytes.fromhex("01fee589cd63912e")
    assert state[36:85] == EXAMPLE[69952:70001]
    assert state[85:100] == bytes(15)
    assert state[100:] == bytes.fromhex("0000000000011171")
    assert state == hash_state(EXAMPLE[:70001])


@given(st.binary(max_size=400), st.data())
def test_going_on_from_any_offset(content: bytes, data: st.DataObject) -> None:
    """A hash resumed from the state at any offset ends in hashlib's digest and in the state of the whole."""
    offset = data.draw(st.integers(0, len(content)))
    resumed = resume_hash(hash_state(content[:offset]))
    assert resumed is not None
    assert resumed.count == offset
    resumed.update([content[offset:]])
    assert str(resumed.digest()) == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert resumed.state() == hash_state(content)


@given(st.lists(st.binary(max_size=150), max_size=12))
def test_however_the_bytes_come(buffers: list[bytes]) -> None:
    """Pieces of any size give the digest and state of the whole, and asking for them changes nothing."""
    running = new_hash()
    for index, buffer in enumerate(buffers):
        running.update([buffer])
        so_far = b"".join(buffers[: index + 1])
        assert running.digest().hex == hashlib.sha256(so_far).hexdigest()
        assert running.state() == hash_state(so_far)


def test_several_buffers_at_once() -> None:
    """One update takes them in order."""
    running = new_hash()
    running.update([b"abc", b"", b"d" * 100])
    assert running.digest().hex == hashlib.sha256(b"abc" + b"d" * 100).hexdigest()
    assert running.count == 103


def test_more_bytes_than_fit_into_32_bits() -> None:
    """Beyond 512 MiB (2^32 bits) and 4 GiB (2^32 bytes) the length that ends every SHA-256 is right.

    The words of a state can be any: the digest then is the compression of the last block, whose end is the length.
    """
    for count in (2**29 - 64, 2**29, 2**32 - 64, 2**32, 2**32 + 64, 5 * 2**30, 2**60):
        words = hash_state(b"")[4:36]
        state = b"sha\x03" + words + bytes(64) + struct.pack(">Q", count)
        resumed = resume_hash(state)
        assert resumed is not None
        assert resumed.count == count
        assert resumed.state() == state
        last_block = b"tail".ljust(56, b"\0").replace(b"tail\0", b"tail\x80", 1) + struct.pack(">Q", (count + 4) * 8)
        resumed.update([b"tail"])
        assert resumed.count == count + 4
        assert resumed.state() == b"sha\x03" + words + b"tail".ljust(64, b"\0") + struct.pack(">Q", count + 4)
        # From the initial words, compressing that block alone is what a plain hash does with its first whole block.
        assert resumed.digest().hex == hash_state(last_block)[4:36].hex()


def test_a_count_that_grows_past_32_bits() -> None:
    """The carry from the low to the high half of the length is not lost."""
    start = 2**29 - 64
    state = hash_state(b"")[:36] + bytes(64) + struct.pack(">Q", start)
    resumed = resume_hash(state)
    assert resumed is not None
    resumed.update([bytes(128)])
    after = resumed.state()
    assert after is not None
    assert struct.unpack(">Q", after[100:])[0] == start + 128
    last_block = b"\x80".ljust(56, b"\0") + struct.pack(">Q", (start + 128) * 8)
    again = new_hash()
    again.update([bytes(128), last_block])
    words = again.state()
    assert words is not None
    assert resumed.digest().hex == words[4:36].hex()


GOOD = hash_state(b"x" * 70)


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"sha\x03",
        GOOD[:-1],
        GOOD + b"\0",
        b"sha\x02" + GOOD[4:],
        b"sha\x04" + GOOD[4:],
        bytes(STATE_LENGTH),
        GOOD[:42] + b"\x01" + GOOD[43:],
        GOOD[:99] + b"\x01" + GOOD[100:],
        GOOD[:100] + struct.pack(">Q", 2**61),
        GOOD[:100] + b"\xff" * 8,
        b"\x0b\xff\x81\x05\x01\x02\xff\x84" + bytes(148),
    ],
)
def test_what_is_no_state(state: bytes) -> None:
    """Wrong length, wrong marker, bytes beyond the pending ones, an impossible count, Go's old gob: all refused."""
    assert resume_hash(state) is None


@given(st.binary(max_size=200))
def test_any_bytes_as_a_state(state: bytes) -> None:
    """Refused, or a state that comes out as it went in."""
    resumed = resume_hash(state)
    if resumed is not None:
        assert resumed.state() == state


def test_hashing_without_libcrypto(without_libcrypto: None) -> None:
    """hashlib does the work; there are no states to store, and none is believed."""
    running = new_hash()
    running.update([b"abc", b"def"])
    assert running.count == 6
    assert running.digest().hex == hashlib.sha256(b"abcdef").hexdigest()
    assert running.state() is None
    assert resume_hash(GOOD) is None
