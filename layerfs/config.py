"""The options of a mount: their names, defaults and how each is written as text.

One parser per option serves both spellings, `--key-with-dashes VALUE` and `-o key_with_underscores=value`, so that the
two cannot drift apart. Nothing here looks at the disk, except for the names of users and groups.
"""

from __future__ import annotations

import grp
import math
import os
import pwd
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from layerfs.errors import LayerfsError

if TYPE_CHECKING:
    from layerfs.registry_config import RegistryConfig


class InvalidOption(LayerfsError):
    """A mount option that does not exist, or whose value has no meaning."""


class UnknownOption(InvalidOption):
    """A word among mount options that means nothing to layerfs, and nothing to file systems in general."""


#: Bytes of content that are kept on this machine if nobody says how many.
DEFAULT_CACHE_SIZE: Final = 10 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class MountConfig:
    """Everything that a mount is made with. Times are in seconds."""

    #: A path or URL, or what `--config` names.
    source: str | RegistryConfig
    mountpoint: str
    #: Every change is answered with EROFS.
    read_only: bool = False
    #: `rm` of a layer's link is allowed.
    allow_delete: bool = False
    #: Other users than the one who mounts may use the mount.
    allow_other: bool = False
    #: A source without a registry gets an empty one.
    create: bool = False
    #: Hash states that others stored are believed, so that what they began is finished without reading it again.
    trust_hash_states: bool = False
    #: Where it is remembered what blobs there are: `none`, `memory`, or the URL of a Redis, which may be secret.
    cache: str = field(default="memory", repr=False)
    #: Where content is kept on this machine, and how many bytes of it; see `content_directory`.
    cache_dir: str | None = None
    cache_size: int = DEFAULT_CACHE_SIZE
    #: Nothing is given out that was not compared with its digest.
    verify_reads: bool = False
    #: Owner of everything in the mount.
    uid: int = field(default_factory=os.geteuid)
    gid: int = field(default_factory=os.getegid)
    #: Permission bits that nothing in the mount has.
    umask: int = 0o022
    #: How long what can change (listings, tags, upload sizes) may be remembered.
    metadata_ttl: float = 1.0
    #: No operation takes longer; then it fails with an errno.
    operation_timeout: float = 60.0
    #: Files open at a time; each costs a descriptor and a read-ahead buffer.
    max_handles: int = 4096
    #: Uploads that are being written at a time.
    max_uploads: int = 256
    #: An operation that takes longer, and succeeds, is worth a warning.
    slow_operation: float = 10.0
    #: `HOST:PORT` where Prometheus finds metrics, and the file where node_exporter does.
    metrics_address: str | None = None
    metrics_file: str | None = None
    log_level: str = "info"
    log_format: str = "text"
    log_file: str | None = None

    @property
    def content_directory(self) -> str | None:
        """Where content is kept, if it is: reads cannot be verified without."""
        return self.cache_dir or (default_cache_directory() if self.verify_reads else None)


#: What a mount can be told while it serves.
RELOADABLE: Final = frozenset(
    {"allow_delete", "log_format", "log_level", "max_uploads", "metadata_ttl", "operation_timeout"}
)


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a mount is to be from now on, and the options that were changed but need a new mount."""

    config: MountConfig
    ignored: tuple[str, ...]


#: Bytes below which a cache of content is of no use.
SMALLEST_CACHE: Final = 1 << 20

_UNITS: Final = ("", "K", "M", "G", "T", "P")
_SIZE: Final = re.compile(r"(?P<number>[0-9]{1,15}(\.[0-9]{1,9})?) ?(?P<unit>[KMGTP]?)(?P<kind>|B|iB)", re.IGNORECASE)

#: Where the cache can be named without everybody who lists processes reading it.
CACHE_VARIABLE: Final = "LAYERFS_CACHE"
_REDIS_SCHEMES: Final = ("redis", "rediss", "unix")

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("text", "json")

#: What mount(8), fstab(5), systemd and mount.fuse3 hand to every file system. Most are about the mount as a whole and
#: done by others; suid and dev are never granted whatever is asked. `rw` is the default, and does not undo `ro`.
_IGNORED_WORD: Final = re.compile(
    r"rw|a?sync|dirsync|(no|rel|strict)?atime|(no)?(diratime|lazytime)|(no)?(dev|suid|exec|auto|user|mand|symfollow)"
    r"|users|owner|group|silent|loud|_netdev|nofail|defaults|remount|comment|[xX]-.*"
    r"|default_permissions|fsname|subtype|uhelper|helper",
    re.DOTALL,
)

_FLAGS: Final[Mapping[str, str]] = {
    "ro": "read_only",
    "read_only": "read_only",
    "allow_delete": "allow_delete",
    "allow_other": "allow_other",
    "create": "create",
    "trust_hash_states": "trust_hash_states",
    "verify_reads": "verify_reads",
}

_TRUTH: Final[Mapping[str, bool]] = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

#: `\` keeps the comma (or backslash) after it, and so do quotes around a value. mount(8) knows both.
_WORD: Final = re.compile(r'(?:\\.|="[^"]*"(?=,|$)|[^,])+', re.DOTALL)
_QUOTED: Final = re.compile(r'([^="]*=)"([^"]*)"', re.DOTALL)

_ADDRESS: Final = re.compile(r"([^:\[\]\s]+|\[[^\[\]\s]+\]):(?P<port>[0-9]{1,5})")
_ESCAPED: Final = re.compile(r"\\([,\\])")


def parse_mount_options(text: str) -> dict[str, Any]:
    """The fields of `MountConfig` that `-o text` sets, and `config`, the name of a registry's configuration.

    Raises `InvalidOption` for a word that nobody knows.
    """
    fields: dict[str, Any] = {}
    for word in split_mount_options(text):
        fields.update(_parse_word(word))
    return fields


def split_mount_options(text: str) -> list[str]:
    r"""The words of `-o text`. Inside a word `\,` is a comma and `\\` a backslash; a value may be in double quotes."""
    return [_plain_word(match.group()) for match in _WORD.finditer(text)]


def _plain_word(written: str) -> str:
    quoted = _QUOTED.fullmatch(written)
    return "".join(quoted.groups()) if quoted else _ESCAPED.sub(r"\1", written)


def join_mount_options(words: Iterable[str]) -> str:
    """The text that `split_mount_options` makes these words of."""
    return ",".join(re.sub(r"[,\\]", r"\\\g<0>", word) for word in words)


def parse_value(name: str, text: str) -> Any:
    """The value of the `MountConfig` field `name` that `text` stands for; raises `InvalidOption`."""
    return _VALUES[name](text)


def parse_cache(text: str, *, is_public: bool) -> str:
    """The cache that `text` names; raises `InvalidOption`, without the text if there may be a password in it.

    `is_public` text stood on a command line or in a table of mounts, where a password must not be.
    """
    if text in ("none", "memory"):
        return text
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in _REDIS_SCHEMES:
        shown = repr(text) if is_public and not {"@", "?"} & {*text} else "value"
        raise InvalidOption(f"invalid cache {shown}: expected none, memory or redis://HOST:PORT/DATABASE")
    if is_public and ("@" in rest or "?" in rest):
        raise InvalidOption(
            "invalid cache: a URL with a password or parameters on the command line can be read by everybody; "
            f"put it into the environment variable {CACHE_VARIABLE}"
        )
    return text


def _parse_word(word: str) -> dict[str, Any]:
    key, equals, value = word.partition("=")
    key = key.strip()
    if key in _FLAGS:
        return {_FLAGS[key]: _parse_flag(key, value) if equals else True}
    if key in _VALUES:
        if not equals:
            raise InvalidOption(f"mount option {key!r} needs a value: -o {key}=…")
        return {key: parse_value(key, value)}
    if not key or _IGNORED_WORD.fullmatch(key):
        return {}
    known = ", ".join(sorted({*_FLAGS, *_VALUES}))
    raise UnknownOption(f"unknown mount option {word!r}; known are {known}")


def _parse_flag(name: str, text: str) -> bool:
    try:
        return _TRUTH[text.lower()]
    except KeyError:
        raise InvalidOption(f"invalid {name} {text!r}: expected true or false") from None


def _parse_owner(kind: str, find: Callable[[str], int], text: str) -> int:
    if text.isascii() and text.isdigit():
        # 2**32 - 1 means "nobody" in the kernel's calls.
        if int(text) < 2**32 - 1:
            return int(text)
        raise InvalidOption(f"invalid {kind} {text!r}: too large")
    try:
        return find(text)
    except KeyError:
        raise InvalidOption(f"invalid {kind} {text!r}: no such name on this machine, and not a number") from None


def _parse_umask(text: str) -> int:
    if not re.fullmatch(r"(0o?)?[0-7]{1,3}", text):
        raise InvalidOption(f"invalid umask {text!r}: expected octal digits from 000 to 777")
    return int(text, 8)


def _parse_seconds(name: str, *, zero: bool, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0 or (seconds == 0 and not zero):
        expected = "a number of seconds, 0 or more" if zero else "a number of seconds above 0"
        raise InvalidOption(f"invalid {name} {text!r}: expected {expected}")
    return seconds


def _parse_count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        raise InvalidOption(f"invalid {name} {text!r}: expected a whole number above 0")
    return int(text)


def parse_size(name: str, text: str) -> int:
    """Bytes, with the units of coreutils: K and KiB are 1024, KB is 1000. Raises `InvalidOption`."""
    match = _SIZE.fullmatch(text.strip())
    size = 0
    if match is not None:
        base = 1000 if match["unit"] and match["kind"].upper() == "B" else 1024
        size = int(float(match["number"]) * base ** _UNITS.index(match["unit"].upper()))
    if size < SMALLEST_CACHE:
        raise InvalidOption(
            f"invalid {name} {text!r}: expected a size such as 500M, 20G or 1.5TiB, at least {SMALLEST_CACHE >> 20}M"
        )
    return size


def size_as_written(size: int) -> str:
    """Bytes as `parse_size` takes them, in the largest unit that they are a multiple of."""
    power = max(power for power in range(len(_UNITS)) if size % 1024**power == 0)
    return f"{size // 1024**power}{_UNITS[power]}"


def default_cache_directory() -> str:
    """Where systemd, the desktop's rules or habit have the caches of this user."""
    given = os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return given or os.path.join(base, "layerfs")


def _parse_choice(name: str, choices: tuple[str, ...], text: str) -> str:
    if text.lower() not in choices:
        raise InvalidOption(f"invalid {name} {text!r}: expected one of {', '.join(choices)}")
    return text.lower()


def _parse_address(name: str, text: str) -> str:
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 1 << 16:
        raise InvalidOption(f"invalid {name} {text!r}: expected HOST:PORT or [HOST]:PORT, as in 127.0.0.1:9187")
    return text


def _parse_path(text: str) -> str:
    if not text or "\0" in text:
        raise InvalidOption(f"invalid file name {text!r}")
    return os.path.abspath(text)


_VALUES: Final[Mapping[str, Callable[[str], Any]]] = {
    "config": _parse_path,
    "cache": partial(parse_cache, is_public=True),
    "cache_dir": _parse_path,
    "cache_size": partial(parse_size, "cache_size"),
    "uid": partial(_parse_owner, "uid", lambda name: pwd.getpwnam(name).pw_uid),
    "gid": partial(_parse_owner, "gid", lambda name: grp.getgrnam(name).gr_gid),
    "umask": _parse_umask,
    "metadata_ttl": lambda text: _parse_seconds("metadata_ttl", zero=True, text=text),
    "operation_timeout": lambda text: _parse_seconds("operation_timeout", zero=False, text=text),
    "slow_operation": lambda text: _parse_seconds("slow_operation", zero=False, text=text),
    "metrics_address": lambda text: _parse_address("metrics_address", text),
    "metrics_file": _parse_path,
    "max_handles": partial(_parse_count, "max_handles"),
    "max_uploads": partial(_parse_count, "max_uploads"),
    "log_level": partial(_parse_choice, "log_level", LOG_LEVELS),
    "log_format": partial(_parse_choice, "log_format", LOG_FORMATS),
    "log_file": _parse_path,
}
