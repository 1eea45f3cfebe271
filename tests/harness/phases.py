"""The things that people do to a mount, one at a time, so that each of their system calls can go wrong.

A phase prepares a repository, does one thing in it, and can say afterwards, whatever happened, whether what was there
before is still right, and whether the thing was really done when it was said to be.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.commands import opened, write_all
from harness.repository import MountedRepository
from harness.storage import digest_of
from harness.workload import content

#: Enough for several writes to storage, little enough for hundreds of runs.
_SIZE = 200_000
_FIRST = 120_000

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Phase:
    """One thing to do. `act` raises OSError; the rest returns what is wrong, in words."""

    name: str
    prepare: Callable[[MountedRepository], None]
    act: Callable[[MountedRepository], object]
    #: What must hold after any crash or error.
    wrong: Callable[[MountedRepository], str | None]
    #: What must hold once `act` has succeeded.
    undone: Callable[[MountedRepository], str | None]
    options: tuple[str, ...] = ()
    #: What must hold after a crash or error, once it was done again, if that is less.
    unfinished: Callable[[MountedRepository], str | None] | None = None


def data_of(repository: MountedRepository) -> bytes:
    """The bytes that this repository's upload has, or will have; no other repository has them."""
    return content(repository.name, _SIZE)


def bystander_of(repository: MountedRepository) -> bytes:
    """The bytes of a layer that was there before."""
    return content(f"bystander of {repository.name}", 5000)


# --- what is prepared --------------------------------------------------------------------------------------------


def _nothing(repository: MountedRepository) -> None:
    repository.storage.put_layer(repository.name, bystander_of(repository))


def _whole_upload(repository: MountedRepository) -> None:
    _nothing(repository)
    repository.put_upload("layer", data_of(repository))


def _half_upload(repository: MountedRepository) -> None:
    _nothing(repository)
    repository.put_upload("layer", data_of(repository)[:_FIRST])


def _upload_and_damaged_blob(repository: MountedRepository) -> None:
    _whole_upload(repository)
    data = data_of(repository)
    repository.storage.put_blob(data[:-1] + bytes([data[-1] ^ 1]), digest_of(data))


def _committed(repository: MountedRepository) -> None:
    _nothing(repository)
    repository.storage.put_layer(repository.name, data_of(repository))
    repository.storage.make_repository(f"{repository.name}-target")


# --- what is done ------------------------------------------------------------------------------------------------


def _write(path: Path, data: bytes, flags: int, *, sync: bool = False) -> None:
    with opened(path, os.O_WRONLY | flags) as descriptor:
        write_all(descriptor, data)
        if sync:
            os.fsync(descriptor)


def _upload(repository: MountedRepository) -> None:
    _write(repository.upload("layer"), data_of(repository), os.O_CREAT | os.O_TRUNC)


def _upload_synced(repository: MountedRepository) -> None:
    _write(repository.upload("layer"), data_of(repository), os.O_CREAT | os.O_TRUNC, sync=True)


def _append_rest(repository: MountedRepository) -> None:
    """`tail -c +N layer >> upload`, with the N that the upload says."""
    upload = repository.upload("layer")
    _write(upload, data_of(repository)[os.stat(upload).st_size :], os.O_CREAT | os.O_APPEND)


def _commit(repository: MountedRepository) -> None:
    os.rename(repository.upload("layer"), repository.layer(digest_of(data_of(repository))))


def _commit_by_sha512(repository: MountedRepository) -> None:
    os.rename(repository.upload("layer"), repository.layer(digest_of(data_of(repository), "sha512")))


def _create_by_digest(repository: MountedRepository) -> None:
    data = data_of(repository)
    _write(repository.layer(digest_of(data)), data, os.O_CREAT)


def _cancel(repository: MountedRepository) -> None:
    os.unlink(repository.upload("layer"))


def _rename(repository: MountedRepository) -> None:
    os.rename(repository.upload("layer"), repository.upload("renamed"))


def _make_repository(repository: MountedRepository) -> None:
    os.makedirs(repository.path / "deep/er")


def _link_from_other(repository: MountedRepository) -> None:
    digest = digest_of(data_of(repository))
    target = repository.mount.path / f"{repository.name}-target" / "_layers"
    os.link(repository.layer(digest), target / digest)


def _unlink(repository: MountedRepository) -> None:
    os.unlink(repository.layer(digest_of(data_of(repository))))


# --- what must hold ----------------------------------------------------------------------------------------------


def _always(repository: MountedRepository) -> str | None:
    bystander = bystander_of(repository)
    if repository.layer(digest_of(bystander)).read_bytes() != bystander:
        return "a layer that was there before is damaged"
    for digest in repository.layers:
        if digest_of(repository.layer(digest).read_bytes(), digest.partition(":")[0]) != digest:
            return f"{digest} is damaged"
    return None


def _uploads_of(repository: MountedRepository) -> dict[str, bytes]:
    """All uploads that are there. One may be listed for a moment (metadata TTL) after it is gone."""
    found = {}
    for name in repository.uploads:
        with suppress(FileNotFoundError):
            found[name] = repository.upload(name).read_bytes()
    return found


def _prefix(repository: MountedRepository, least: int = 0) -> str | None:
    """Uploads have the first bytes of what was written, and at least so many."""
    for name, seen in _uploads_of(repository).items():
        if seen != data_of(repository)[: len(seen)]:
            return f"the {len(seen)} bytes of upload {name} are not those that were written"
        if len(seen) < least:
            return f"upload {name} has lost bytes: {len(seen)} of {least}"
    return _always(repository)


def _first_half_is_there(repository: MountedRepository) -> str | None:
    return _prefix(repository, _FIRST) if _uploads_of(repository) else "the upload is gone"


def _all_is_there(repository: MountedRepository) -> str | None:
    return _prefix(repository, _SIZE) if len(_uploads_of(repository)) == 1 else f"uploads: {repository.uploads}"


def _upload_or_layer(repository: MountedRepository) -> str | None:
    """Committing was interrupted: until the layer is there, the upload is. Its bytes may be on their way already."""
    data = data_of(repository)
    if not _uploads_of(repository) and not repository.layer(digest_of(data)).exists():
        return "neither the upload nor the layer is there"
    return _prefix(repository)


def _not_uploaded(repository: MountedRepository) -> str | None:
    uploads = _uploads_of(repository)
    if uploads.pop("layer", None) != data_of(repository):
        return "the upload is not what was uploaded"
    # Dying while an upload is begun may leave an empty one, without a name, for registries to purge.
    left = [name for name, data in uploads.items() if data or not _UUID.fullmatch(name)]
    return f"more uploads: {left}" if left else _always(repository)


def _not_committed(repository: MountedRepository) -> str | None:
    left = _left_behind(repository)
    return _not_stored(repository, "sha256") or (f"left in storage: {left}" if left else None)


def _not_committed_by_sha512(repository: MountedRepository) -> str | None:
    return _not_stored(repository, "sha512") or _not_committed(repository)


def _not_created(repository: MountedRepository) -> str | None:
    """An upload that an earlier try has left is somebody else's, as far as anyone can know."""
    return _not_stored(repository, "sha256")


def _not_stored(repository: MountedRepository, algorithm: str, data: bytes | None = None) -> str | None:
    data = data_of(repository) if data is None else data
    canonical, digest = digest_of(data), digest_of(data, algorithm)
    blob, link = repository.storage.blob(canonical), repository.storage.link(repository.name, digest)
    if not blob.exists() or blob.read_bytes() != data:
        return "the blob is not in storage"
    if not link.exists() or link.read_text() != canonical:
        return f"{digest} is not linked"
    return None if repository.layer(digest).read_bytes() == data else f"{digest} reads otherwise"


def _not_cancelled(repository: MountedRepository) -> str | None:
    left = _left_behind(repository)
    return f"uploads: {repository.uploads}, in storage {left}" if repository.uploads or left else None


def _left_behind(repository: MountedRepository) -> list[str]:
    """What takes up space or can be seen. An empty directory may be left where removing it went wrong."""
    directories = repository.storage.uploads(repository.name)
    return [
        str(path) for directory in directories for path in directory.iterdir() if path.name in ("data", "startedat")
    ]


def _not_renamed(repository: MountedRepository) -> str | None:
    return None if repository.uploads == ["renamed"] else f"uploads: {repository.uploads}"


def _not_made(repository: MountedRepository) -> str | None:
    made = repository.storage.repository(f"{repository.name}/deep/er")
    is_there = (made / "_layers").is_dir() and (made / "_manifests").is_dir()
    return None if is_there else "there is no such repository in storage"


def _not_usable(repository: MountedRepository) -> str | None:
    """A directory that a crash has left is no reason to refuse: the first upload completes the repository."""
    made = MountedRepository(repository.mount, repository.storage, f"{repository.name}/deep/er")
    made.put_layer(data_of(repository))
    return _not_made(repository) or _not_stored(made, "sha256", data_of(repository))


def _not_linked(repository: MountedRepository) -> str | None:
    data = data_of(repository)
    digest = digest_of(data)
    link = repository.storage.link(f"{repository.name}-target", digest)
    is_there = link.exists() and link.read_text() == digest
    return None if is_there else "there is no such link in storage"


def _not_unlinked(repository: MountedRepository) -> str | None:
    link = repository.storage.link(repository.name, digest_of(data_of(repository)))
    return "the link is still there" if link.exists() else None


PHASES = [
    Phase("upload", _nothing, _upload, _prefix, _not_uploaded),
    Phase("upload-fsync", _nothing, _upload_synced, _prefix, _not_uploaded),
    Phase("append", _half_upload, _append_rest, _first_half_is_there, _not_uploaded),
    Phase("commit", _whole_upload, _commit, _upload_or_layer, _not_committed),
    Phase("commit-sha512", _whole_upload, _commit_by_sha512, _upload_or_layer, _not_committed_by_sha512),
    Phase("commit-over-damage", _upload_and_damaged_blob, _commit, _upload_or_layer, _not_committed),
    Phase("create-by-digest", _nothing, _create_by_digest, _always, _not_created),
    Phase("cancel", _whole_upload, _cancel, _prefix, _not_cancelled),
    Phase("rename", _whole_upload, _rename, _all_is_there, _not_renamed),
    Phase("mkdir", _nothing, _make_repository, _always, _not_made, unfinished=_not_usable),
    Phase("link", _committed, _link_from_other, _always, _not_linked),
    Phase("rm", _committed, _unlink, _always, _not_unlinked, ("--allow-delete",)),
]

#: What was done, but could not be answered any more, cannot be done again: these errnos then say so.
DONE_ALREADY = {
    "commit": "ENOENT",
    "commit-sha512": "ENOENT",
    "commit-over-damage": "ENOENT",
    "cancel": "ENOENT",
    "rename": "ENOENT",
    "mkdir": "EEXIST",
    "link": "EEXIST",
    "rm": "ENOENT",
    "create-by-digest": "EPERM",
}
