"""SHA-256 in plain Python, for one purpose: an independent opinion on the registry's hash state files.

Go's `crypto/sha256` marshals its state as `sha\\x03`, the eight words, the unfinished block padded with zeros to 64
bytes, and the count of bytes, all big endian (108 bytes). Slow (some 100 KB/s), so use it on small data.
"""

from __future__ import annotations

import math
import struct

_MASK = 0xFFFFFFFF


def _primes(count: int) -> list[int]:
    found: list[int] = []
    number = 2
    while len(found) < count:
        if all(number % prime for prime in found):
            found.append(number)
        number += 1
    return found


def _cube_root_fraction(prime: int) -> int:
    """The first 32 bits of the fraction of the cube root, by an integer root of prime * 2^96."""
    root = round((prime << 96) ** (1 / 3))
    while root**3 > prime << 96:
        root -= 1
    while (root + 1) ** 3 <= prime << 96:
        root += 1
    return root & _MASK


_START = [math.isqrt(prime << 64) & _MASK for prime in _primes(8)]
_ROUND = [_cube_root_fraction(prime) for prime in _primes(64)]


def _rotate(word: int, bits: int) -> int:
    return (word >> bits | word << (32 - bits)) & _MASK


def _compress(words: list[int], block: bytes) -> list[int]:
    w = list(struct.unpack(">16I", block))
    for i in range(16, 64):
        s0 = _rotate(w[i - 15], 7) ^ _rotate(w[i - 15], 18) ^ w[i - 15] >> 3
        s1 = _rotate(w[i - 2], 17) ^ _rotate(w[i - 2], 19) ^ w[i - 2] >> 10
        w.append((w[i - 16] + s0 + w[i - 7] + s1) & _MASK)
    a, b, c, d, e, f, g, h = words
    for i in range(64):
        s1 = _rotate(e, 6) ^ _rotate(e, 11) ^ _rotate(e, 25)
        t1 = h + s1 + (e & f ^ ~e & g) + _ROUND[i] + w[i]
        s0 = _rotate(a, 2) ^ _rotate(a, 13) ^ _rotate(a, 22)
        t2 = s0 + (a & b ^ a & c ^ b & c)
        a, b, c, d, e, f, g, h = (t1 + t2) & _MASK, a, b, c, (d + t1) & _MASK, e, f, g
    return [(x + y) & _MASK for x, y in zip(words, (a, b, c, d, e, f, g, h), strict=True)]


def hash_state(data: bytes) -> bytes:
    """What a registry keeps in `hashstates/sha256/<len(data)>`."""
    words, whole = _START, len(data) // 64 * 64
    for start in range(0, whole, 64):
        words = _compress(words, data[start : start + 64])
    return b"sha\x03" + struct.pack(">8I", *words) + data[whole:].ljust(64, b"\0") + struct.pack(">Q", len(data))
