"""What mount(8) calls: `mount.layerfs SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`, understood.

It is put into the words of `layerfs mount`, so that there is one set of options, whoever mounts. mount.fuse3 (which is
what mount(8) runs for the type `fuse.layerfs`) calls `layerfs SOURCE DIR -o OPTIONS`, which is the same.
"""

from __future__ import annotations

import getopt
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NoReturn

from layerfs import config
from layerfs import mountpoint as mountpoints
from layerfs.errors import LayerfsError

#: What the command is called as in /sbin.
NAME: Final = "mount.layerfs"

_USAGE: Final = f"{NAME} SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]"

_TYPES: Final = ("layerfs", "fuse.layerfs", "fuse")

#: Begins the word that is `--config-file`, which says what the other options are and so is none of them.
_FILE_WORD: Final = "config_file="

#: `env.NAME=VALUE` sets a variable of the environment: credentials, as a rule.
_ENVIRONMENT_WORD: Final = re.compile(r"env\.([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


class MountExit(IntEnum):
    """The exit codes of mount(8)."""

    OK = 0
    #: The options, or the way that it was called.
    USAGE = 1
    #: The system lacks something: /dev/fuse, memory, processes.
    SYSTEM = 2
    BUG = 4
    INTERRUPTED = 8
    FAILED = 32


class HelperUsage(LayerfsError):
    """The arguments are none that mount(8) gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What mount(8) wants. `words` are mount options, unescaped; `environment` can have secrets."""

    source: str
    mountpoint: str
    words: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: Where options are read from that no word says.
    config_file: str | None = None
    #: Only say whether it could be asked for.
    is_fake: bool = False
    is_verbose: bool = False

    def mount_arguments(self) -> list[str]:
        """The arguments of `layerfs mount` that ask for it."""
        options = [] if self._is_foreground else ["--daemon"]
        if self.config_file is not None:
            options += ["--config-file", self.config_file]
        if self.words:
            options += ["-o", config.join_mount_options(self.words)]
        # Whatever stands after `--` is no option, even if it begins with a dash.
        return [*options, "--", self.source, self.mountpoint]

    @property
    def _is_foreground(self) -> bool:
        """Whether this process is the one that is waited for: by systemd, through mount.fuse3, which has mounted."""
        return mountpoints.is_descriptor(self.mountpoint) and "NOTIFY_SOCKET" in os.environ


def is_called(program: str, arguments: Sequence[str], commands: Mapping[str, object]) -> bool:
    """Whether these are the words of mount(8) or mount.fuse3, and not those of a person."""
    if os.path.basename(program).startswith("mount.") or list(arguments[:1]) == [NAME]:
        return True
    return len(arguments) == 4 and arguments[2] == "-o" and arguments[0] not in commands


def parse(arguments: Sequence[str]) -> Request:
    """Raises `HelperUsage`, or `InvalidOption` for a word that cannot be understood."""
    arguments = arguments[1:] if list(arguments[:1]) == [NAME] else arguments
    try:
        options, places = getopt.gnu_getopt(list(arguments), "sfnvrwN:o:t:")
    except getopt.GetoptError as error:
        raise HelperUsage(f"{error.msg}; usage: {_USAGE}") from None
    if len(places) != 2:
        raise HelperUsage(f"expected SOURCE and DIR, got {len(places)} arguments; usage: {_USAGE}")
    given = dict(options)
    if given.get("-t", "layerfs") not in _TYPES:
        raise HelperUsage(f"type {given['-t']!r} is not of layerfs; use -t layerfs")
    words = config.split_mount_options(",".join(text for name, text in options if name == "-o"))
    if "remount" in words:
        raise HelperUsage(
            "options of a mount of layerfs cannot be changed by remounting: unmount it and mount it again, or change "
            "its configuration file and send SIGHUP to its daemon"
        )
    if "-N" in given:
        raise HelperUsage(
            f"layerfs does not enter other mount namespaces: run 'nsenter --mount={given['-N']} mount …' instead of "
            f"'mount -N {given['-N']} …'"
        )
    environment = {match[1]: match[2] for match in map(_ENVIRONMENT_WORD.fullmatch, words) if match}
    files = [word.partition("=")[2] for word in words if word.startswith(_FILE_WORD)]
    words = [word for word in words if not _ENVIRONMENT_WORD.fullmatch(word) and not word.startswith(_FILE_WORD)]
    if "-r" in given:
        words.append("ro")
    return Request(
        source=places[0],
        mountpoint=places[1],
        words=tuple(_known(words) if "-s" in given else words),
        environment=environment,
        config_file=files[-1] if files else None,
        is_fake="-f" in given,
        is_verbose="-v" in given,
    )


def _known(words: Sequence[str]) -> list[str]:
    """The words that are understood; for `-s`, with which unknown ones are no error."""
    return [word for word in words if not _is_unknown(word)]


def _is_unknown(word: str) -> bool:
    try:
        config.parse_mount_options(config.join_mount_options([word]))
    except config.UnknownOption:
        return True
    except config.InvalidOption:
        return False
    return False


def begin_again(request: Request) -> NoReturn:
    """Starts this program anew with the environment that the options name, which only its user can read there.

    The command line, which everybody can read, has it until then.
    """
    files = [] if request.config_file is None else [_FILE_WORD + request.config_file]
    words = [*files, *request.words]
    options = ["-o", config.join_mount_options(words)] if words else []
    arguments = [NAME, *(["-f"] if request.is_fake else []), *options, "--", request.source, request.mountpoint]
    # -P: what lies in the working directory is nobody's to import.
    os.execve(sys.executable, [sys.executable, "-P", "-m", "layerfs", *arguments], os.environ | request.environment)  # noqa: S606
