"""What must be true of registry storage at every moment, whatever was interrupted. Knows the layout, not layerfs."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Collection, Mapping

from harness.sha256 import hash_state

V2 = "/docker/registry/v2"

_BLOB = re.compile(rf"{V2}/blobs/sha256/(..)/(\1.{{62}})/data")
_LINK = re.compile(rf"{V2}/repositories/(.+)/_layers/(tarsum/\w+/\w+|\w+)/(\w+)/link")
_UPLOAD_FILE = re.compile(rf"({V2}/repositories/.+/_uploads/[^/]+)/(.+)")
_STATE = re.compile(r"hashstates/sha256/(\d+)")


def blob_path(digest: str) -> str:
    """Where a registry keeps the blob `sha256:…`."""
    algorithm, _, encoded = digest.partition(":")
    return f"{V2}/blobs/{algorithm}/{encoded[:2]}/{encoded}/data"


def link_path(name: str, digest: str) -> str:
    """Where a registry keeps the link that makes a blob a layer of repository `name`."""
    return f"{V2}/repositories/{name}/_layers/{link_directory(digest)}/link"


def link_directory(digest: str) -> str:
    """Where a registry has the link by this digest or TarSum, inside `_layers`."""
    algorithm, _, encoded = digest.partition(":")
    label, _, hash_name = algorithm.partition("+")
    if not hash_name:
        return f"{algorithm}/{encoded}"
    return f"tarsum/{label.removeprefix('tarsum').removeprefix('.') or 'v0'}/{hash_name}/{encoded}"


def upload_path(name: str, uuid: str, file: str = "") -> str:
    """Where a registry keeps an upload, or one of its files."""
    return f"{V2}/repositories/{name}/_uploads/{uuid}" + (f"/{file}" if file else "")


def check_storage(files: Mapping[str, bytes], *, foreign: Collection[str] = ()) -> None:
    """Fails if a blob is not what its name says, a link leads astray, or a hash state is not of the bytes before it.

    `foreign` are paths that somebody else has written, and that nothing is expected of.
    """
    for path, content in files.items():
        if path in foreign:
            continue
        if match := _BLOB.fullmatch(path):
            assert hashlib.sha256(content).hexdigest() == match[2], f"wrong bytes in blob {path}"
        elif match := _LINK.fullmatch(path):
            _check_link(files, path, match[1], f"{match[2]}:{match[3]}", content.decode())
        elif (match := _UPLOAD_FILE.fullmatch(path)) and (state := _STATE.fullmatch(match[2])):
            _check_state(path, content, int(state[1]), files.get(f"{match[1]}/data"))


def _check_link(files: Mapping[str, bytes], path: str, name: str, digest: str, content: str) -> None:
    assert content.startswith("sha256:"), f"link {path} is {content!r}"
    assert blob_path(content) in files, f"link {path} leads to a blob that is not there"
    blob = files[blob_path(content)]
    algorithm, _, encoded = digest.partition(":")
    if not algorithm.startswith("tarsum/"):
        assert hashlib.new(algorithm, blob).hexdigest() == encoded, f"link {path} leads to other content"
    assert link_path(name, content) in files, f"link {path} has no canonical link"


def _check_state(path: str, content: bytes, count: int, data: bytes | None) -> None:
    if data is None:
        return  # published, and about to be deleted
    assert count <= len(data), f"{path} is ahead of the {len(data)} bytes of data"
    assert content == _state_of(data[:count]), f"{path} is not the state of the first {count} bytes"


@functools.lru_cache(maxsize=4096)
def _state_of(content: bytes) -> bytes:
    return hash_state(content)
