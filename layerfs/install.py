"""What is outside of the Python package: systemd's units, and the helper that mount(8) looks for in /sbin.

Knows where they belong; the units themselves are the files in `systemd/`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from layerfs.errors import LayerfsError

#: Where an administrator's units are; packages have theirs in usr/lib/systemd/system.
UNIT_DIRECTORY: Final = "etc/systemd/system"

#: How the units in `systemd/` call the command.
_COMMAND_IN_UNITS: Final = "/usr/bin/env layerfs"
_PROGRAM_IN_UNITS: Final = "mount.fuse3 layerfs#"

#: Written for one place only, from the pair in `systemd/`.
_EXAMPLES: Final = ("mnt-registry.mount", "mnt-registry.automount")
_EXAMPLE_PLACE: Final = "/mnt/registry"
_EXAMPLE_SOURCE: Final = "/var/lib/docker-registry"
_EXAMPLE_OPTIONS: Final = "_netdev,allow_other"


class InstallFailed(LayerfsError):
    """A file cannot be written, or is not ours to overwrite."""


@dataclass(frozen=True, slots=True)
class File:
    """One file to be installed: its content, or what it is a symbolic link to."""

    path: Path
    content: str | None = None
    target: str | None = None

    @property
    def is_there(self) -> bool:
        """Whether it is installed just so."""
        try:
            if self.target is not None:
                return os.readlink(self.path) == self.target
            return not self.path.is_symlink() and self.path.read_text() == self.content
        except (OSError, UnicodeDecodeError):
            return False


def executable(name: str = "layerfs") -> str:
    """The absolute path of a command of this installation. Raises `InstallFailed`."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise InstallFailed(
            f"no command {name!r} in {str(beside.parent)!r} or the PATH: install layerfs with pip first"
        )
    return os.path.abspath(found)


def files(prefix: str, *, unit_directory: str = UNIT_DIRECTORY, program: str | None = None) -> Iterator[File]:
    """Everything that serves all mounts: units, and the helper; for `program`, or this installation's."""
    helper = str(Path(program).with_name("mount.layerfs")) if program is not None else executable("mount.layerfs")
    program = program or executable()
    for name, text in sorted(_units().items()):
        if name not in _EXAMPLES:
            yield File(Path(prefix, unit_directory.lstrip("/"), name), content=_with_program(text, program))
    yield File(_sbin(prefix) / "mount.layerfs", target=helper)


def mount_files(
    prefix: str, source: str, mountpoint: str, options: str, *, unit_directory: str = UNIT_DIRECTORY
) -> Iterator[File]:
    """A mount and an automount unit for one place."""
    for word in (source, mountpoint, options):
        if re.search(r"[\x00-\x1f\x7f]", word):
            raise InstallFailed(f"{word!r} cannot stand in a unit: it has control characters in it")
    place = os.path.normpath(mountpoint)
    if not place.startswith("/") or place == "/":
        raise InstallFailed(f"mountpoint {mountpoint!r} has to be an absolute path")
    for example in _EXAMPLES:
        text = _units()[example]
        # Its own header is about the example.
        text = text[text.index("[Unit]") :]
        text = text.replace(f"Options={_EXAMPLE_OPTIONS}", f"Options={_in_unit(options)}")
        text = text.replace(_EXAMPLE_SOURCE, _in_unit(source)).replace(_EXAMPLE_PLACE, _in_unit(place))
        name = escape_path(place) + Path(example).suffix
        yield File(Path(prefix, unit_directory.lstrip("/"), name), content=text)


def write(file: File, *, force: bool) -> None:
    """Installs one file, whole or not at all. Raises `InstallFailed`, without `force` also for what others wrote."""
    if file.is_there:
        return
    if os.path.lexists(file.path) and not force:
        raise InstallFailed(f"{str(file.path)!r} is there and has another content: use --force to write over it")
    temporary = file.path.with_name(f".{file.path.name}.{os.getpid()}.tmp")
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        if file.target is not None:
            temporary.symlink_to(file.target)
        else:
            temporary.write_text(file.content or "")
            temporary.chmod(0o644)
        temporary.replace(file.path)
    except OSError as exc:
        temporary.unlink(missing_ok=True)
        raise InstallFailed(f"cannot write {str(file.path)!r}: {exc.strerror}") from exc


def escape_path(path: str) -> str:
    """The name of the unit for a path (see systemd.unit(5))."""
    name = path.strip("/").replace("//", "/")
    escaped = "".join(
        "-" if char == "/" else char if re.fullmatch(r"[A-Za-z0-9:_.]", char) else _escaped(char) for char in name
    )
    return "\\x2e" + escaped[1:] if escaped.startswith(".") else escaped


def _escaped(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))


def _units() -> Mapping[str, str]:
    here = Path(__file__).parent
    # Beside the package in a clone, in it where it was installed from a wheel.
    directory = next((each for each in (here / "systemd", here.parent / "systemd") if each.is_dir()), None)
    if directory is None:
        raise InstallFailed("the units are missing from this installation of layerfs: install its wheel")
    return {path.name: path.read_text() for path in directory.iterdir() if path.suffix in _SUFFIXES}


_SUFFIXES: Final = (".service", ".timer", ".mount", ".automount")


def _with_program(text: str, program: str) -> str:
    return text.replace(_COMMAND_IN_UNITS, program).replace(_PROGRAM_IN_UNITS, f"mount.fuse3 {program}#")


def _in_unit(word: str) -> str:
    # % begins a specifier; quotes and backslashes mean something in some settings, and stand for themselves in these.
    return word.replace("%", "%%")


def _sbin(prefix: str) -> Path:
    """Where mount(8) looks: /sbin, which is /usr/sbin on most systems."""
    sbin = Path(prefix, "sbin")
    return sbin if sbin.is_dir() and not sbin.is_symlink() else Path(prefix, "usr/sbin")
