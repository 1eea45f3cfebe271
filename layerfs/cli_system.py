"""The commands about this machine and this installation: what is in force, ill, installed; help."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from layerfs import cli_settings, examples, exits, install, logs, settings
from layerfs.command import Output, find_source, say
from layerfs.config import LOG_FORMATS, LOG_LEVELS, MountConfig
from layerfs.exits import ExitCode

_FORMAT = click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json"]),
    default="table",
    help="Text for people, or one JSON object a line [default: table].",
)


# --- config ------------------------------------------------------------------------------------------------------


@click.command("config", epilog=exits.DESCRIPTION)
@click.argument("name", metavar="[COMMAND]", required=False)
@click.option("--mountpoint", metavar="DIR", help="Show what holds for the mount on DIR.")
@_FORMAT
def config_command(name: str | None, mountpoint: str | None, output_format: str) -> int:
    """Shows the options that are in force where the command line does not say otherwise, and where each comes from.

    The command line wins over the environment (LAYERFS_METADATA_TTL=5), that over the configuration file, and that
    over the default. Passwords are not shown.

    \b
    A configuration file is written in TOML:
      [mount]                     # every mount
      allow_other = true
      [mount."/mnt/registry"]     # one of them
      metadata_ttl = 5
      [check]
      jobs = 8
    """
    context = click.get_current_context()
    group = context.find_root().command
    assert isinstance(group, click.Group)  # noqa: S101 - it is how this command is found
    commands = {key: each for key, each in group.commands.items() if cli_settings.settable_options(each)}
    if name is not None and name not in commands:
        raise click.UsageError(f"no command {name!r} has options; there are {', '.join(sorted(commands))}", context)
    named = {key: each for key, each in commands.items() if name in (None, key)}
    file = cli_settings.file_in_use(context)
    rows = [
        row
        for key, each in sorted(named.items())
        for row in cli_settings.in_force(
            each, key, config_file=file, mountpoint=mountpoint, defaults=_defaults() if key == "mount" else {}
        )
    ]
    output = Output()
    if output_format == "json":
        for row in rows:
            output.json(asdict(row))
    else:
        output.table(
            ("COMMAND", "OPTION", "VALUE", "FROM"),
            [(row.command, row.option, "-" if row.value is None else row.value, row.source) for row in rows],
        )
    output.flush()
    if file is None and settings.is_for_others(settings.DEFAULT_FILE):
        say(f"{settings.DEFAULT_FILE} is left out: this user may not read it")
    for unknown in cli_settings.unknown_variables(group):
        click.echo(f"layerfs: the variable {unknown} of the environment is no option of layerfs", err=True)
    return ExitCode.OK


def _defaults() -> dict[str, Any]:
    defaults = MountConfig(source="", mountpoint="")
    return {name: getattr(defaults, name) for name in MountConfig.__slots__}


# --- doctor ------------------------------------------------------------------------------------------------------

_DOCTOR_EXIT_CODES: Final = """\b
Exit codes:
  0   nothing has to be mended; there may be warnings
  1   the arguments cannot be used
  4   internal error: please report it
  8   interrupted
  32  something keeps layerfs from working
"""


@click.command("doctor", epilog=_DOCTOR_EXIT_CODES)
@click.argument("source", metavar="[SOURCE]", required=False)
@click.option("--config", "registry_config", metavar="FILE", help="Look at the storage in a registry's configuration.")
@_FORMAT
def doctor_command(source: str | None, registry_config: str | None, output_format: str) -> int:
    """Looks for what keeps layerfs from working on this machine, and says how to mend it.

    With SOURCE also at that storage: whether it can be reached and written, and how far its clock is from this one.
    Run it as the user who is to mount. Nothing is changed.
    """
    from layerfs import doctor

    context = click.get_current_context()
    found = None if source is None and registry_config is None else find_source(source, registry_config, context)
    logs.configure(level="error", log_format="text", log_file=None, detached=False)
    output = Output()
    failed = False
    for finding in doctor.examine(found):
        failed |= finding.health is doctor.Health.FAIL
        if output_format == "json":
            output.json(asdict(finding))
        else:
            output.line(f"{finding.health.upper():<5} {finding.name}: {finding.explanation}")
            if finding.remedy:
                output.line(f"      -> {finding.remedy}")
        output.flush()
    return ExitCode.FAILED if failed else ExitCode.OK


# --- install-units -----------------------------------------------------------------------------------------------


@click.command("install-units", epilog=exits.DESCRIPTION)
@click.option("--prefix", metavar="DIR", default="/", help="Write below DIR instead of / (for packages and images).")
@click.option(
    "--unit-directory",
    metavar="DIR",
    default=f"/{install.UNIT_DIRECTORY}",
    show_default=True,
    help="Where the units belong; /usr/lib/systemd/system in packages.",
)
@click.option(
    "--mount", metavar="SOURCE MOUNTPOINT", nargs=2, help="Write a mount and an automount unit for these, too."
)
@click.option("-o", "options", metavar="OPTION,…", default="_netdev", help="With --mount: its options, as in fstab.")
@click.option("--command", "program", metavar="FILE", help="Where layerfs will be [default: where it is now].")
@click.option("--force", is_flag=True, help="Write over files that were changed.")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be done.")
def install_units_command(
    prefix: str,
    unit_directory: str,
    mount: tuple[str, str] | None,
    options: str,
    program: str | None,
    force: bool,
    dry_run: bool,
) -> int:
    """Installs the units of systemd, and /sbin/mount.layerfs for mount(8) and fstab.

    The units call layerfs where it is installed now, so it may be in a virtual environment.
    """
    output = Output()
    try:
        files = list(install.files(prefix, unit_directory=unit_directory, program=program))
        if mount is not None:
            source, mountpoint = mount
            files += install.mount_files(prefix, source, mountpoint, options, unit_directory=unit_directory)
        for file in files:
            change = "unchanged" if file.is_there else "would write" if dry_run else "wrote"
            if not dry_run:
                install.write(file, force=force)
            output.line(f"{change} {file.path}{f' -> {file.target}' if file.target else ''}")
    except install.InstallFailed as error:
        output.flush()
        say(str(error))
        return ExitCode.USAGE
    if not dry_run and prefix == "/":
        output.line("now: systemctl daemon-reload")
    output.flush()
    return ExitCode.OK


# --- manual, completion ------------------------------------------------------------------------------------------


@click.command("manual", epilog=exits.DESCRIPTION)
@click.argument("directory", metavar="DIRECTORY")
def manual_command(directory: str) -> int:
    """Writes the manual pages of all commands below DIRECTORY, where man(1) looks: in man1, man5 and man8.

    They say what --help says.
    """
    from layerfs import manual

    group = click.get_current_context().find_root().command
    assert isinstance(group, click.Group)  # noqa: S101 - it is how this command is found
    try:
        written = manual.write(group, directory)
    except OSError as error:
        say(f"cannot write the manual pages below {directory!r}: {error.strerror}")
        return ExitCode.USAGE
    output = Output()
    for path in written:
        output.line(f"wrote {path}")
    output.flush()
    return ExitCode.OK


@click.command("completion", epilog=exits.DESCRIPTION)
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> int:
    """Prints a script for SHELL (bash, zsh or fish) that completes commands, options, their values, and files."""
    from click.shell_completion import get_completion_class

    root = click.get_current_context().find_root()
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101 - click has these three
    click.echo(found(root.command, {}, "layerfs", "_LAYERFS_COMPLETE").source())
    return ExitCode.OK


def complete_values(group: click.Group) -> None:
    """Lets shells complete what parameters take: names of files, of repositories in a local storage, words."""
    for command in group.commands.values():
        for parameter in command.params:
            metavar = parameter.metavar or ""
            kind = _FILES.get(metavar)
            if kind is not None and not isinstance(parameter.type, click.Choice):
                # Not click.Path, which would look at the path: a mountpoint may hang.
                vars(parameter)["shell_complete"] = _files(kind)
            elif metavar.strip("[").startswith("REPO"):
                vars(parameter)["shell_complete"] = _repositories
            elif metavar in _WORDS:
                vars(parameter)["shell_complete"] = _words(_WORDS[metavar])


_FILES: Final[Mapping[str, str]] = {
    "SOURCE": "dir",
    "[SOURCE]": "dir",
    "MOUNTPOINT": "dir",
    "[MOUNTPOINT]": "dir",
    "DIR": "dir",
    "DIRECTORY": "dir",
    "FILE": "file",
    "PATH": "file",
}
#: How long a list of repositories may take.
_COMPLETION_SECONDS: Final = 1.0

_WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "LEVEL": LOG_LEVELS,
    "FORMAT": LOG_FORMATS,
    "CACHE": ("none", "memory", "redis://"),
}


def _files(kind: str) -> Callable[[click.Context, str], list[CompletionItem]]:
    return lambda _context, incomplete: [CompletionItem(incomplete, type=kind)]


def _repositories(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """The repositories of a storage on this machine; after a colon, the tags of one."""
    source = context.params.get("source")
    if not isinstance(source, str) or "://" in source:
        return []
    root = os.path.join(source, "docker/registry/v2/repositories")
    repository, colon, begun = incomplete.partition(":")
    if colon:
        tags = _names(os.path.join(root, repository, "_manifests/tags"))
        return [CompletionItem(f"{repository}:{tag}") for tag in tags if tag.startswith(begun)]
    found = []
    began = time.monotonic()
    for path, directories, _ in os.walk(root):
        if {"_layers", "_manifests"} & {*directories}:
            found.append(CompletionItem(os.path.relpath(path, root)))
        directories[:] = sorted(name for name in directories if not name.startswith("_"))
        if time.monotonic() - began > _COMPLETION_SECONDS:
            # Nobody waits for a registry to be read because of a key.
            break
    return [item for item in found if item.value.startswith(incomplete)]


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _words(words: Sequence[str]) -> Callable[[click.Context, str], list[CompletionItem]]:
    return lambda _context, incomplete: [CompletionItem(word) for word in words if word.startswith(incomplete)]


def teach(group: click.Group) -> None:
    """Gives all commands their summaries and examples."""
    for name, command in group.commands.items():
        command.short_help = examples.SUMMARIES.get(name)
        command.context_settings.setdefault("help_option_names", ["-h", "--help"])
        command.epilog = f"{examples.text(name)}\n{command.epilog or ''}"


COMMANDS: Final = (completion_command, config_command, doctor_command, install_units_command, manual_command)
