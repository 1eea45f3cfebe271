"""layerfs's own configuration file, in TOML: the options of each command, and of single mounts, under their names.

    [mount]
    allow_other = true

    [mount."/mnt/registry"]
    allow_delete = true

    [check]
    jobs = 8

What an option means, and how its value is written, is not known here: values are text, as on the command line.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from layerfs.errors import LayerfsError

#: Read if it is there and no other is named.
DEFAULT_FILE: Final = "/etc/layerfs/layerfs.toml"

#: The variable of the environment that names another file; empty for none.
FILE_VARIABLE: Final = "LAYERFS_CONFIG_FILE"

#: More than anybody writes by hand.
_SIZE_LIMIT: Final = 1 << 20

#: An option as it could stand on the command line; several for one that may be repeated.
Text: TypeAlias = str | list[str]

#: The options that each command has, by their names with underscores.
Known: TypeAlias = Mapping[str, AbstractSet[str]]


class InvalidSettings(LayerfsError):
    """The configuration file cannot be read, or says what nobody understands."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a configuration file says. Values can have secrets."""

    #: Its absolute name.
    file: str
    #: Whether users other than its owner and group can read it.
    is_public: bool
    #: Options by command.
    commands: Mapping[str, Mapping[str, Text]] = field(repr=False, default_factory=dict)
    #: Options by mountpoint, which win over those of `mount`.
    mounts: Mapping[str, Mapping[str, Text]] = field(repr=False, default_factory=dict)

    def of(self, command: str, mountpoint: str | None = None) -> dict[str, Text]:
        """The options of a command, by their names with underscores; of `mount`, for a mountpoint."""
        options = dict(self.commands.get(command, {}))
        if command == "mount" and mountpoint is not None:
            options |= self.mounts.get(_plain(mountpoint), {})
        return options


def find_file(named: str | None) -> str | None:
    """The file to be read: the one that is named, else that of the environment, else the usual one.

    The usual one only if it exists and this user may read it: with passwords in it, it is for root's mounts alone.
    """
    if named is None:
        named = os.environ.get(FILE_VARIABLE)
    if named is not None:
        return os.path.abspath(named) if named else None
    return DEFAULT_FILE if os.path.lexists(DEFAULT_FILE) and not is_for_others(DEFAULT_FILE) else None


def is_for_others(file: str) -> bool:
    """Whether a file is there and this user may not read it."""
    return os.path.exists(file) and not os.access(file, os.R_OK)


def load(file: str, known: Known) -> Settings:
    """Reads a configuration file. Raises `InvalidSettings`, also for an option that its command does not have."""
    try:
        with open(file, "rb") as opened:
            mode = os.stat(opened.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise InvalidSettings(f"configuration file {file!r}: not a regular file")
            document = tomllib.loads(opened.read(_SIZE_LIMIT).decode())
    except OSError as exc:
        raise InvalidSettings(f"configuration file {file!r}: {exc.strerror}") from exc
    except ValueError as exc:  # what tomllib raises, and bytes that are no UTF-8
        raise InvalidSettings(f"configuration file {file!r}: {exc}") from exc
    commands: dict[str, Mapping[str, Text]] = {}
    mounts: dict[str, Mapping[str, Text]] = {}
    for section, table in document.items():
        command = section.replace("_", "-")
        if command not in known or not isinstance(table, dict):
            raise InvalidSettings(
                f"configuration file {file!r}: [{section}] is no command with options; there are "
                f"{', '.join(sorted(known))}"
            )
        places = {name: inner for name, inner in table.items() if command == "mount" and name.startswith("/")}
        plain = {name: value for name, value in table.items() if name not in places}
        commands[command] = _options(file, f"[{section}]", plain, known[command])
        for place, inner in places.items():
            where = f'[{section}."{place}"]'
            if not isinstance(inner, dict):
                raise InvalidSettings(f"configuration file {file!r}: {where} is not a table")
            mounts[_plain(place)] = _options(file, where, inner, known[command])
    return Settings(file, bool(mode & stat.S_IROTH), commands, mounts)


def _options(file: str, where: str, table: Mapping[str, object], known: AbstractSet[str]) -> Mapping[str, Text]:
    options: dict[str, Text] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            raise InvalidSettings(
                f"configuration file {file!r}: {where} has no option {key!r}; there are {', '.join(sorted(known))}"
            )
        options[name] = _text(file, f"{where} {key}", value)
    return options


def _text(file: str, where: str, value: object) -> Text:
    match value:
        case bool():
            return "true" if value else "false"
        case str() | int() | float():
            return str(value)
        case list() if all(isinstance(each, str | int | float) for each in value):
            return [str(each) for each in value]
    raise InvalidSettings(f"configuration file {file!r}: {where} must be a text, a number, true or false")


def _plain(mountpoint: str) -> str:
    # Not resolved: a mountpoint may hang, and is written the same way in both places.
    return os.path.abspath(mountpoint)
