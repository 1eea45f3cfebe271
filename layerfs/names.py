"""Names of repositories, tags, uploads: what may be created, and what may be read. No I/O.

Creating takes only the strict grammar of the distribution specification. Reading accepts whatever a registry may
have stored: every version has let through names that the next one refuses.
"""

from __future__ import annotations

import re
import unicodedata
import uuid
from typing import Final

from layerfs.errors import InvalidRepositoryName, InvalidTag, InvalidUploadId, InvalidUploadName

#: Characters in a whole repository name (distribution's `reference.RepositoryNameTotalLengthMax`).
REPOSITORY_NAME_LENGTH: Final = 255

#: Bytes in one file name, as everywhere in Linux.
FILE_NAME_LENGTH: Final = 255

_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_STORED_COMPONENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_UPLOAD_ID = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.=-]+")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def check_repository_name(name: str) -> str:
    """`name`, when a repository of that name may be created; else raises `InvalidRepositoryName`."""
    if not name:
        raise InvalidRepositoryName(name, "it is empty")
    if len(name) > REPOSITORY_NAME_LENGTH:
        raise InvalidRepositoryName(name[:80] + "…", f"longer than {REPOSITORY_NAME_LENGTH} characters")
    for component in name.split("/"):
        if not _COMPONENT.fullmatch(component):
            raise InvalidRepositoryName(
                name,
                f"{component!r} is not lower-case letters and digits, joined by one '.', one or two '_', or dashes",
            )
    return name


def is_stored_component(component: str) -> bool:
    """Whether a directory of this name in storage can be a component of a repository name."""
    return bool(_STORED_COMPONENT.fullmatch(component))


def check_stored_repository_name(name: str) -> str:
    """`name`, when a registry may have stored a repository of that name; else raises `InvalidRepositoryName`."""
    if len(name) > REPOSITORY_NAME_LENGTH:
        raise InvalidRepositoryName(name[:80] + "…", f"longer than {REPOSITORY_NAME_LENGTH} characters")
    if not name or not all(is_stored_component(component) for component in name.split("/")):
        raise InvalidRepositoryName(name, "no registry stores such a name")
    return name


def check_tag(tag: str) -> str:
    """`tag`, when it is one; else raises `InvalidTag`."""
    if not _TAG.fullmatch(tag):
        raise InvalidTag(tag, "expected a letter, digit or '_', then at most 127 of those, '.' and '-'")
    return tag


def is_tag(text: str) -> bool:
    """Whether `check_tag` would take `text`."""
    return bool(_TAG.fullmatch(text))


def check_name_among_tags(name: str) -> str:
    """`name`, when it is a tag or hidden, as what is to become one is while rsync writes it; else as `check_tag`."""
    return name if name.startswith(".") else check_tag(name)


def new_upload_id() -> str:
    """A fresh upload id: a random UUID, because a registry purges only uploads whose id is one."""
    return str(uuid.uuid4())


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID written as registries write it."""
    return bool(_UUID.fullmatch(text))


def check_upload_id(upload_id: str) -> str:
    """`upload_id`, when storage can hold an upload of that id; else raises `InvalidUploadId`."""
    if not is_upload_id(upload_id):
        raise InvalidUploadId(upload_id[:80], "expected a file name of letters, digits, '-', '_', '.' and '='")
    return upload_id


def is_upload_id(text: str) -> bool:
    """Whether `check_upload_id` would take `text`."""
    return len(text) <= FILE_NAME_LENGTH and bool(_UPLOAD_ID.fullmatch(text))


def check_upload_name(name: str) -> str:
    """`name`, when an upload may be given that file name; else raises `InvalidUploadName`.

    It is shown in directory listings and stored as text, so it must be UTF-8 without control characters.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidUploadName(name, "it is not UTF-8") from None
    if not name or name in (".", "..") or "/" in name:
        raise InvalidUploadName(name, "it is no file name")
    if size > FILE_NAME_LENGTH:
        raise InvalidUploadName(name[:80] + "…", f"longer than {FILE_NAME_LENGTH} bytes")
    if any(unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") for character in name):
        raise InvalidUploadName(name, "it has control or formatting characters")
    return name
