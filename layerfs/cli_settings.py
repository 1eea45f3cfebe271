"""Every option of every command can also come from the environment (`LAYERFS_…`) and from a configuration file.

The command line wins over the environment, that over the file, and that over the default. click does the work; this
tells it the names of the variables, and puts what the file says under what it looks at last.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any, Final

import click
from click.core import ParameterSource

from layerfs import config, settings
from layerfs.config import InvalidOption, MountConfig, Reloaded
from layerfs.settings import InvalidSettings, Known, Settings

PREFIX: Final = "LAYERFS_"

#: In the `meta` of a context: what the file says, what it may say, and which mount it is about.
_SETTINGS: Final = "layerfs.settings"
_KNOWN: Final = "layerfs.known"
_MOUNTPOINT: Final = "layerfs.mountpoint"

#: The source is said where it is used, and so is `--config`, which is one.
_NOT_SETTABLE: Final = frozenset({"help", "version", "config", "config_file", "registry_config"})

#: Values that can have secrets in them.
_SECRET: Final = frozenset({"cache"})


def option_name(option: click.Option) -> str | None:
    """How an option is called in the file, after its long form; None for one that has none there."""
    long = next((name for name in option.opts if name.startswith("--")), None)
    name = long[2:].replace("-", "_") if long else None
    return None if name in _NOT_SETTABLE else name


def settable_options(command: click.Command) -> dict[str, click.Option]:
    """The options of a command that need not be on the command line, by their names in the file."""
    named = ((option_name(each), each) for each in command.params if isinstance(each, click.Option))
    return {name: option for name, option in named if name is not None}


def variable(name: str) -> str:
    """The variable of the environment for an option."""
    return PREFIX + name.upper()


def make_settable(group: click.Group) -> None:
    """Lets all commands of a group have their options from the environment and from the file."""
    known: Known = {name: frozenset(settable_options(command)) for name, command in group.commands.items()}
    known = {name: options for name, options in known.items() if options}
    for name in known:
        command = group.commands[name]
        for option, parameter in settable_options(command).items():
            parameter.envvar = variable(option)
        command.params.append(_config_file_option(known))


def _config_file_option(known: Known) -> click.Option:
    def load(context: click.Context, _parameter: click.Parameter, named: str | None) -> str | None:
        if context.resilient_parsing:
            return named
        context.meta[_KNOWN] = known
        file = settings.find_file(named)
        if file is not None:
            try:
                context.meta[_SETTINGS] = settings.load(file, known)
            except InvalidSettings as error:
                raise click.UsageError(str(error), context) from None
            _use_file(context)
        return file

    return click.Option(
        ["--config-file"],
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=load,
        help="Read options from FILE, in TOML "
        f"[default: {settings.FILE_VARIABLE} of the environment, else {settings.DEFAULT_FILE} if it exists].",
    )


def note_mountpoint(context: click.Context, _parameter: click.Parameter, mountpoint: str) -> str:
    """A callback for an eager argument: what the file says of this mountpoint counts, too."""
    context.meta[_MOUNTPOINT] = mountpoint
    _use_file(context)
    return mountpoint


def _use_file(context: click.Context) -> None:
    # Called when the file is known and when the mountpoint is, in whatever order that is; options come later.
    found = loaded(context)
    if found is not None:
        names = {name: option.name or "" for name, option in settable_options(context.command).items()}
        values = found.of(context.info_name or "", context.meta.get(_MOUNTPOINT))
        context.default_map = {names[name]: value for name, value in values.items()}


def loaded(context: click.Context) -> Settings | None:
    """The configuration file of this command, if there is one."""
    found: Settings | None = context.meta.get(_SETTINGS)
    return found


def file_in_use(context: click.Context) -> str | None:
    """The name of the configuration file of this command, if there is one."""
    found = loaded(context)
    return found.file if found else None


def is_typed(context: click.Context, parameter: str) -> bool:
    """Whether a value stood on the command line."""
    return context.get_parameter_source(parameter) is ParameterSource.COMMANDLINE


def is_from_environment(context: click.Context, parameter: str) -> bool:
    """Whether a value is that of a variable of the environment."""
    return context.get_parameter_source(parameter) is ParameterSource.ENVIRONMENT


def where_from(context: click.Context, parameter: click.Parameter) -> str:
    """Where a value comes from, for people."""
    match context.get_parameter_source(parameter.name or ""):
        case ParameterSource.COMMANDLINE:
            return "command line"
        case ParameterSource.ENVIRONMENT:
            return f"environment, {parameter.envvar}"
        case ParameterSource.DEFAULT_MAP:
            found = loaded(context)
            return found.file if found else "file"
        case _:
            return "default"


def describe(error: click.ClickException) -> str:
    """What is wrong, and where it stands if that is not the command line."""
    message = error.format_message().rstrip(".")
    if not isinstance(error, click.BadParameter) or error.param is None or error.ctx is None:
        return message
    if is_typed(error.ctx, error.param.name or "") or isinstance(error, click.MissingParameter):
        return message
    return f"{where_from(error.ctx, error.param)}: {message}"


def parse_cache(context: click.Context, parameter: click.Parameter, text: str) -> str:
    """The cache that an option names. Raises `InvalidOption`, also for a password that everybody can read."""
    found = loaded(context)
    is_in_file = context.get_parameter_source(parameter.name or "") is ParameterSource.DEFAULT_MAP
    cache = config.parse_cache(text, is_public=is_typed(context, parameter.name or ""))
    if is_in_file and found is not None and found.is_public and _has_secret(cache):
        raise InvalidOption(
            f"a URL with a password or parameters in a file that everybody can read: chmod 600 {found.file}"
        )
    return cache


def _has_secret(url: str) -> bool:
    return "@" in url or "?" in url


# --- reading the file again ----------------------------------------------------------------------------------------


def reloader(
    context: click.Context, mounted: MountConfig, *, stronger: AbstractSet[str], weaker: Mapping[str, Any]
) -> Callable[[], Reloaded]:
    """Gives a function that reads the configuration file of a mount again.

    Options in `stronger` were said where the file does not count; `weaker` are values that count where it says nothing.
    The function raises `LayerfsError`, may be called in any thread, and does not look at the working directory.
    """
    first = loaded(context)
    known: Known = context.meta[_KNOWN]
    before = first.of("mount", mounted.mountpoint) if first else {}
    file = first.file if first else settings.DEFAULT_FILE
    defaults: dict[str, Any] = {each.name: each.default for each in fields(MountConfig)} | dict(weaker)

    def read_again() -> Reloaded:
        if first is None and not os.path.lexists(file):
            return Reloaded(mounted, ())
        now = settings.load(file, known).of("mount", mounted.mountpoint)
        now = {name: value for name, value in now.items() if name not in stronger}
        values: dict[str, Any] = {name: defaults[name] for name in config.RELOADABLE if name not in stronger}
        for name in config.RELOADABLE & now.keys():
            values |= config.parse_mount_options(config.join_mount_options([f"{name}={now[name]}"]))
        changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
        return Reloaded(replace(mounted, **values), tuple(sorted(changed - config.RELOADABLE - stronger)))

    return read_again


# --- layerfs config ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InForce:
    """One option of a command: its value as text (None: none), and where that comes from."""

    command: str
    option: str
    value: str | None
    source: str


def in_force(
    command: click.Command,
    name: str,
    *,
    config_file: str | None = None,
    mountpoint: str | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Iterator[InForce]:
    """The options of a command if it were run now without any. Raises `click.UsageError`."""
    context = click.Context(command, info_name=name)
    if mountpoint is not None:
        context.meta[_MOUNTPOINT] = mountpoint
    with context:
        # Arguments are left out: they are nobody's to set but the command line's, and some commands demand them.
        given = {} if config_file is None else {"config_file": config_file}
        options = [each for each in command.params if isinstance(each, click.Option)]
        for each in sorted(options, key=lambda option: not option.is_eager):
            if each.name == "config_file" or option_name(each) is not None:
                try:
                    each.handle_parse_result(context, given, [])
                except click.UsageError:
                    # Messages name it, and there is a mount(8) too.
                    context.info_name = f"layerfs {name}"
                    raise
    for option, parameter in settable_options(command).items():
        value = context.params.get(parameter.name or "")
        shown = _shown(option, value)
        if shown is None:
            shown = _shown(option, (defaults or {}).get(option))
        yield InForce(name, option, shown, where_from(context, parameter))


def _shown(option: str, value: object) -> str | None:
    match value:
        case bool():
            return "true" if value else "false"
        case int() if option == "umask":
            return f"{value:03o}"
        case int() if option == "cache_size":
            return config.size_as_written(value)
        case int():
            return str(value)
        case float():
            # No more digits than were given, and none less.
            return f"{value:.15g}"
        case timedelta():
            return f"{value.total_seconds() / 3600:g}h"
        case list() | tuple():
            return ",".join(map(str, value)) or None
        case str() if option in _SECRET and _has_secret(value):
            return "********"
        case str():
            return value
        case _:
            # None, or what click has for nothing since 8.3.
            return None


def unknown_variables(group: click.Group, environment: Mapping[str, str] | None = None) -> list[str]:
    """Variables that look like options and are none."""
    known = {variable(name) for command in group.commands.values() for name in settable_options(command)}
    known.add(settings.FILE_VARIABLE)
    return sorted(name for name in environment or os.environ if name.startswith(PREFIX) and name not in known)
