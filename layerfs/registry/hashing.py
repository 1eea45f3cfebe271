"""SHA-256 that can be stopped, stored and taken up again by this program or by a registry.

A registry keeps the state of an upload's hash in `hashstates/sha256/<bytes hashed>`: what Go's `crypto/sha256` gives
for MarshalBinary, 108 bytes, big-endian:

    0    4  b"sha\\x03"
    4   32  the eight state words
    36  64  the unfinished block: the last (count mod 64) bytes of input, then zeros
    100  8  count, the bytes hashed so far

Python's `hashlib` cannot export a state, so this one drives OpenSSL's SHA256_* functions, whose context is a public
structure (`openssl/sha.h`). Where they are missing `hashlib` does the work and there are no states, which is always
safe: whoever finishes the upload reads it all again.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import hashlib
import struct
from collections.abc import Iterable
from typing import Final, Protocol

from layerfs.digest import CANONICAL, Digest

STATE_LENGTH: Final = 108

_MAGIC: Final = b"sha\x03"
_BLOCK: Final = 64


class StreamingHash(Protocol):
    """A SHA-256 in progress. `update` releases the GIL and may run in a thread; nothing else may run meanwhile."""

    count: int

    def update(self, buffers: Iterable[bytes]) -> None: ...

    def digest(self) -> Digest:
        """Of what was hashed so far; more may follow."""

    def state(self) -> bytes | None:
        """For `resume_hash`, here or in a registry; None where states cannot be had."""


def new_hash() -> StreamingHash:
    """A hash of nothing yet."""
    return _HashlibSHA256() if _libcrypto() is None else _OpenSSLSHA256()


def resume_hash(state: bytes) -> StreamingHash | None:
    """The hash that `state` was taken of; None if it is no state, or states cannot be used here.

    That the state is well-formed does not make it true: see `HashStates` for when one is believed.
    """
    if _libcrypto() is None or len(state) != STATE_LENGTH or not state.startswith(_MAGIC):
        return None
    (count,) = struct.unpack_from(">Q", state, 100)
    if count >= 2**61 or any(state[36 + count % _BLOCK : 100]):
        return None
    return _OpenSSLSHA256(state)


class _Context(ctypes.Structure):
    """OpenSSL's SHA256_CTX. `Nl` and `Nh` are the low and high half of the count, in bits."""

    _fields_ = (
        ("h", ctypes.c_uint32 * 8),
        ("Nl", ctypes.c_uint32),
        ("Nh", ctypes.c_uint32),
        ("data", ctypes.c_uint8 * _BLOCK),
        ("num", ctypes.c_uint),
        ("md_len", ctypes.c_uint),
    )


@functools.cache
def _libcrypto() -> ctypes.CDLL | None:
    name = ctypes.util.find_library("crypto") or "libcrypto.so.3"
    try:
        library = ctypes.CDLL(name)
        library.SHA256_Init.argtypes = [ctypes.c_void_p]
        library.SHA256_Update.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
        library.SHA256_Final.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    except (OSError, AttributeError):
        return None
    return library


class _OpenSSLSHA256:
    def __init__(self, state: bytes | None = None) -> None:
        library = _libcrypto()
        assert library is not None  # noqa: S101 - the two makers above have looked
        self._library = library
        self._context = _Context()
        self.count = 0
        library.SHA256_Init(ctypes.byref(self._context))
        if state is not None:
            self._load(state)

    def update(self, buffers: Iterable[bytes]) -> None:
        for buffer in buffers:
            self._library.SHA256_Update(ctypes.byref(self._context), buffer, len(buffer))
            self.count += len(buffer)

    def digest(self) -> Digest:
        finished = _Context.from_buffer_copy(self._context)
        out = ctypes.create_string_buffer(32)
        self._library.SHA256_Final(out, ctypes.byref(finished))
        return Digest(CANONICAL, out.raw.hex())

    def state(self) -> bytes:
        pending = bytes(self._context.data)[: self.count % _BLOCK]
        return _MAGIC + struct.pack(">8I64sQ", *self._context.h, pending, self.count)

    def _load(self, state: bytes) -> None:
        *words, block, count = struct.unpack(">8I64sQ", state[len(_MAGIC) :])
        self._context.h[:] = words
        self._context.Nl = count << 3 & 0xFFFFFFFF
        self._context.Nh = count >> 29
        self._context.data[:] = block
        self._context.num = count % _BLOCK
        self.count = count


class _HashlibSHA256:
    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.count = 0

    def update(self, buffers: Iterable[bytes]) -> None:
        for buffer in buffers:
            self._hash.update(buffer)
            self.count += len(buffer)

    def digest(self) -> Digest:
        return Digest(CANONICAL, self._hash.hexdigest())

    def state(self) -> bytes | None:
        return None
