"""What must be true of registry storage at any moment, looked at without layerfs: whatever is broken is listed.

A registry believes a link, a blob's name and a hash state without looking again. So none of them may ever be wrong,
not even for the moment between two steps, because that is when the power goes.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import os
import re
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from harness.storage import Storage, digest_of, digest_of_file

_LINK = re.compile(rb"sha256:[0-9a-f]{64}")
#: So often a look may be disturbed.
_LOOKS = 20

_STARTED_AT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


class _Context(ctypes.Structure):
    """OpenSSL's SHA256_CTX."""

    _fields_ = (("words", ctypes.c_uint32 * 8), ("rest", ctypes.c_uint32 * 20))


_crypto = ctypes.CDLL(ctypes.util.find_library("crypto"))


def state_of(content: bytes) -> bytes:
    """What `harness.sha256.hash_state` gives, a few thousand times faster."""
    context = _Context()
    _crypto.SHA256_Init(ctypes.byref(context))
    _crypto.SHA256_Update(ctypes.byref(context), content, ctypes.c_size_t(len(content)))
    pending = content[len(content) // 64 * 64 :].ljust(64, b"\0")
    return b"sha\x03" + struct.pack(">8I", *context.words) + pending + struct.pack(">Q", len(content))


def damage(storage: Storage) -> list[str]:
    """Everything in the storage that no registry, and no layerfs, may ever leave there."""
    return [*damage_of_layers(storage), *_found(_bad_uploads, storage)]


def damage_of_layers(storage: Storage) -> list[str]:
    """The part about blobs and links; the only one where others write uploads behind the daemon's back."""
    return [*_found(_bad_blobs, storage), *_found(_bad_links, storage)]


def _found(look: Callable[[Storage], Iterable[str]], storage: Storage) -> list[str]:
    """All that a look finds. It begins anew when something is deleted meanwhile, as a daemon does after its answer."""
    for _ in range(_LOOKS):
        with suppress(FileNotFoundError):
            return list(look(storage))
    return list(look(storage))


def assert_undamaged(storage: Storage) -> None:
    found = damage(storage)
    assert not found, "the storage is damaged:\n" + "\n".join(found)


def _bad_blobs(storage: Storage) -> Iterator[str]:
    for path in sorted((storage.v2 / "blobs").glob("*/*/*/data")):
        expected = f"{path.parents[2].name}:{path.parent.name}"
        actual = digest_of_file(path)
        if actual != expected:
            yield f"{path}: {path.stat().st_size} bytes that hash to {actual}"


def _bad_links(storage: Storage) -> Iterator[str]:
    for _name, digest, link in storage.links():
        content = link.read_bytes()
        if not _LINK.fullmatch(content):
            yield f"{link}: {content[:100]!r}"
            continue
        target = content.decode()
        if digest.startswith("sha256:") and target != digest:
            yield f"{link}: it means {target}"
        blob = storage.blob(target)
        if not blob.is_file():
            yield f"{link}: there is no such blob"
        elif not digest.startswith("sha256:") and digest_of_file(blob, digest.partition(":")[0]) != digest:
            yield f"{link}: {target} has another digest"


def _bad_uploads(storage: Storage) -> Iterator[str]:
    for directory in sorted((storage.v2 / "repositories").glob("**/_uploads/*")):
        if not (directory / "startedat").exists():
            continue
        if not _STARTED_AT.fullmatch((directory / "startedat").read_text()):
            yield f"{directory}: bad startedat"
        data = directory / "data"
        content = data.read_bytes() if data.exists() else b""
        yield from _bad_states(directory, content)


def _bad_states(directory: Path, content: bytes) -> Iterator[str]:
    """A state is believed when its name is the exact size: only that one can do harm."""
    state = directory / "hashstates" / "sha256" / str(len(content))
    if not state.exists():
        return
    if state.read_bytes() != state_of(content):
        yield f"{state}: it is not the state of those bytes"


def strange_entries(storage: Storage) -> list[str]:
    """Whatever is neither a directory nor a regular file, or has the set-uid or set-gid bit."""
    found = []
    for path in sorted(storage.root.rglob("*")):
        mode = path.lstat().st_mode
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)) or mode & (stat.S_ISUID | stat.S_ISGID):
            found.append(f"{path}: {stat.filemode(mode)}")
    return found


def wrong_layers(root: Path) -> list[str]:
    """All layers that a mount at `root` shows and that do not hash to their name; run it where a hang is bounded."""
    found = []
    for directory, names, layers in os.walk(root, onerror=_raise):
        names[:] = [name for name in names if name not in ("_uploads", "_oci", "_tags", "_manifests")]
        if os.path.basename(directory) != "_layers":
            continue
        for name in layers:
            content = Path(directory, name).read_bytes()
            if digest_of(content, name.partition(":")[0]) != name:
                found.append(f"{directory}/{name}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
    return found


def _raise(error: OSError) -> None:
    raise error
