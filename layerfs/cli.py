"""The `layerfs` command: arguments in; an exit code, and one line on standard error if something is wrong, out.

Nothing that could start a thread or an event loop is imported before the process has forked (`--daemon`): the daemon,
and all below it, is imported where it is started.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from layerfs import (
    cli_cache,
    cli_looking,
    cli_maintenance,
    cli_reading,
    cli_settings,
    cli_status,
    cli_system,
    command,
    config,
    detach,
    exits,
    logs,
    mount_helper,
    umount,
)
from layerfs import mountpoint as mountpoints
from layerfs.config import MountConfig, Reloaded
from layerfs.detach import Outcome
from layerfs.exits import ExitCode
from layerfs.mount_helper import MountExit

if TYPE_CHECKING:
    from layerfs.source import Source

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits with its exit code. Called as `mount.layerfs`, it is what mount(8) runs."""
    given = sys.argv[1:] if arguments is None else arguments
    if mount_helper.is_called(sys.argv[0], given, layerfs.commands):
        sys.exit(_mount_for_mount8(given))
    sys.exit(_run(given))


def _run(arguments: Sequence[str]) -> int:
    try:
        exit_code: int = layerfs.main(arguments, prog_name="layerfs", standalone_mode=False)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "layerfs"
        usage = getattr(context.command, "usage_exit_code", ExitCode.USAGE) if context else ExitCode.USAGE
        exit_code = _fail(usage, f"{cli_settings.describe(error)} (see '{command} --help')")
    except (click.Abort, KeyboardInterrupt):
        exit_code = _fail(ExitCode.INTERRUPTED, "interrupted")
    return exit_code


def _fail(exit_code: int, message: str) -> int:
    click.echo(logs.one_line(f"layerfs: {message}"), err=True)
    return exit_code


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=False, epilog=exits.DESCRIPTION)
@click.version_option(package_name="layerfs", message="layerfs %(version)s")
def layerfs() -> None:
    """Mounts the storage of a Docker/OCI registry as directories.

    Layers are files that any tool can read; what is copied into _uploads and renamed to its digest becomes a layer.
    Each command has a --help with examples, and 'layerfs doctor' says what is missing on this machine.

    \b
      layerfs mount /var/lib/docker-registry /mnt/registry     # until Ctrl-C; --daemon for the background
      layerfs status                                           # what is mounted, and how it is
      layerfs umount /mnt/registry
    """


# --- mount ---------------------------------------------------------------------------------------------------


def _parse(context: click.Context, parameter: click.Parameter, text: str | None) -> Any:
    if text is None or parameter.name is None:
        return None
    try:
        if parameter.name == "cache":
            return cli_settings.parse_cache(context, parameter, text)
        return config.parse_value(parameter.name, text)
    except config.InvalidOption as error:
        is_typed = cli_settings.is_typed(context, parameter.name)
        where = "" if is_typed else f"{cli_settings.where_from(context, parameter)}: "
        raise click.UsageError(f"{where}{error}") from None


def _parse_mount_options(_context: click.Context, _parameter: click.Parameter, texts: Sequence[str]) -> dict[str, Any]:
    try:
        return config.parse_mount_options(",".join(texts))
    except config.InvalidOption as error:
        raise click.UsageError(str(error)) from None


def _value(name: str, metavar: str, explanation: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(name, metavar=metavar, callback=_parse, help=explanation)


def _flag(*names: str, explanation: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    # None and not False where it is not given, so that `-o` can say it.
    return click.option(*names, is_flag=True, default=None, help=explanation)


def _from_registry_config(source: Source) -> dict[str, Any]:
    """What a registry's configuration says of a mount; everything that is said to layerfs itself wins."""
    if isinstance(source, str):
        return {}
    fields: dict[str, Any] = {"allow_delete": source.allow_delete, "read_only": source.read_only}
    return fields | ({} if source.cache is None else {"cache": source.cache})


@layerfs.command(cls=command.SourceCommand, epilog=exits.DESCRIPTION)
@command.source_argument()
@click.argument("mountpoint", metavar="MOUNTPOINT", is_eager=True, callback=cli_settings.note_mountpoint)
@click.option("--daemon", is_flag=True, help="Return when the mount answers, and serve it in the background.")
@_flag("-r", "--read-only", explanation="Answer every change with 'Read-only file system'.")
@_flag(
    "--allow-delete/--no-allow-delete",
    explanation="Let 'rm' remove a layer from its repository (never its bytes) [default: as the registry's "
    "configuration says, else no].",
)
@_flag("--allow-other", explanation="Let other users than this one use the mount.")
@_flag("--create", explanation="Begin an empty registry in SOURCE if it holds none.")
@_flag(
    "--trust-hash-states",
    explanation="Believe the hash states of uploads that others began, instead of reading the uploads again. A wrong "
    "state leads to a blob that does not match its digest.",
)
@_value(
    "--cache",
    "CACHE",
    "Where to remember what blobs there are: none, memory, or redis://HOST:PORT/DATABASE, to be shared with a registry "
    f"[default: {config.CACHE_VARIABLE} of the environment, else the registry's Redis, else memory].",
)
@_value("--cache-dir", "DIRECTORY", "Keep the content of layers in DIRECTORY, for all mounts [default: nowhere].")
@_value("--cache-size", "SIZE", "How much may be kept there, such as 500M or 20G [default: 10G].")
@_flag(
    "--verify-reads",
    explanation="Give out no byte that was not compared with its digest: a layer is fetched as a whole before it is "
    "read, into --cache-dir [default then: ~/.cache/layerfs].",
)
@_value("--uid", "USER", "Owner of all files, by name or number [default: this user].")
@_value("--gid", "GROUP", "Group of all files, by name or number [default: that of this user].")
@_value("--umask", "OCTAL", "Permissions that nothing in the mount has [default: 022].")
@_value("--metadata-ttl", "SECONDS", "How long listings and sizes may be remembered [default: 1].")
@_value("--operation-timeout", "SECONDS", "After this any operation fails instead of waiting on [default: 60].")
@_value("--max-handles", "COUNT", "Files open at a time [default: 4096].")
@_value("--max-uploads", "COUNT", "Uploads being written at a time [default: 256].")
@_value("--slow-operation", "SECONDS", "Operations that take longer are logged as slow [default: 10].")
@_value(
    "--metrics-address", "HOST:PORT", "Serve metrics for Prometheus there, as in 127.0.0.1:9187 [default: nowhere]."
)
@_value("--metrics-file", "FILE.prom", "Write metrics to FILE.prom, for node_exporter's textfile collector.")
@_value("--log-level", "LEVEL", "debug, info, warning or error [default: info].")
@_value("--log-format", "FORMAT", "text or json [default: text].")
@_value("--log-file", "FILE", "Log to FILE [default: standard error; syslog with --daemon].")
@click.option("-v", "--verbose", is_flag=True, help="The same as --log-level debug.")
@click.option(
    "-o",
    "mount_options",
    metavar="OPTION,…",
    multiple=True,
    callback=_parse_mount_options,
    help="The same options as mount(8) writes them: -o ro,allow_other,metadata_ttl=5.",
)
def mount(source: Source, daemon: bool, verbose: bool, mount_options: dict[str, Any], **given: Any) -> int:
    """Mounts the registry storage SOURCE on the directory MOUNTPOINT.

    SOURCE is the root directory that a registry is configured with (the one that has docker/registry/v2 in it), as a
    path or as a URL such as s3://bucket/prefix; or a backup of it, as tar::/backup/registry.tar.gz. Or it is left out,
    and --config names the registry's configuration.

    The mount is served until MOUNTPOINT is unmounted or a signal (Ctrl-C, SIGTERM) ends it; both let the requests and
    uploads that are under way finish.
    """
    context = click.get_current_context()
    if "config" in mount_options:
        source = command.find_source(_as_given(source), mount_options.pop("config"), context)
    said = {name: value for name, value in given.items() if value is not None}
    typed = {name: value for name, value in said.items() if cli_settings.is_typed(context, name)}
    if verbose:
        typed["log_level"] = "debug"
    configured = _from_registry_config(source)
    settings = MountConfig(source=source, **(configured | said | mount_options | typed))
    if not settings.mountpoint:
        raise click.UsageError("MOUNTPOINT must not be empty")
    if settings.create and settings.read_only:
        raise click.UsageError("--create makes a registry, which --read-only forbids: use one of them")
    from_environment = {name for name in said if cli_settings.is_from_environment(context, name)}
    stronger = typed.keys() | mount_options.keys() | from_environment
    reload = cli_settings.reloader(context, settings, stronger=stronger, weaker=configured)
    if daemon:
        outcome = detach.run_detached(
            lambda ready: _serve(settings, ready, reload, detached=True), died=ExitCode.FAILED
        )
    else:
        outcome = _serve(settings, lambda: None, reload, detached=False)
    return outcome.exit_code if outcome.error is None else _fail(outcome.exit_code, outcome.error)


def _as_given(source: Source) -> str:
    if isinstance(source, str):
        return source
    raise click.UsageError("use one of --config and -o config=…")


def _serve(
    settings: MountConfig, ready: Callable[[], None], read_again: Callable[[], Reloaded], *, detached: bool
) -> Outcome:
    def configure_logs(settings: MountConfig) -> None:
        logs.configure(
            level=settings.log_level, log_format=settings.log_format, log_file=settings.log_file, detached=detached
        )

    def reload() -> Reloaded:
        reloaded = read_again()
        configure_logs(reloaded.config)
        return reloaded

    try:
        in_cache = settings.content_directory and f"{settings.content_directory}/lock"
        for file in filter(None, (settings.log_file, settings.metrics_file, in_cache)):
            mountpoints.check_log_file(file, settings.mountpoint)
        configure_logs(settings)
    except (mountpoints.MountpointError, logs.LogUnavailable) as error:
        return Outcome(ExitCode.USAGE, str(error))

    from layerfs import daemon

    try:
        daemon.run(settings, on_ready=ready, reload=reload)
    except daemon.DaemonFailed as error:
        if detached or settings.log_file is not None:
            # Nobody may be there any more to read standard error.
            log.error("%s", error)
        return Outcome(error.exit_code, str(error))
    return Outcome(ExitCode.OK)


# --- mount(8) ------------------------------------------------------------------------------------------------


def _mount_for_mount8(arguments: Sequence[str]) -> int:
    """Mounts what mount(8) asks for, and returns its exit codes."""
    try:
        request = mount_helper.parse(arguments)
        if request.environment:
            mount_helper.begin_again(request)
        if request.is_verbose:
            click.echo(logs.one_line(shlex.join(["layerfs", "mount", *request.mount_arguments()])))
        context = mount.make_context("mount", request.mount_arguments())
    except (mount_helper.HelperUsage, config.InvalidOption) as error:
        return _fail(MountExit.USAGE, str(error))
    except click.ClickException as error:
        return _fail(MountExit.USAGE, cli_settings.describe(error))
    if request.is_fake:
        return MountExit.OK
    try:
        with context:
            exit_code: int = mount.invoke(context)
    except click.ClickException as error:
        return _fail(MountExit.USAGE, cli_settings.describe(error))
    except (click.Abort, KeyboardInterrupt):
        return _fail(MountExit.INTERRUPTED, "interrupted")
    except OSError as error:
        return _fail(MountExit.SYSTEM, f"cannot start the daemon: {error.strerror}")
    # What is wrong with the options is known by now: what is left was found out while mounting.
    return MountExit.FAILED if exit_code == ExitCode.USAGE else exit_code


# --- umount --------------------------------------------------------------------------------------------------


@layerfs.command("umount", epilog=exits.DESCRIPTION)
@click.argument("mountpoint", metavar="MOUNTPOINT")
@click.option("-l", "--lazy", is_flag=True, help="Take a busy mount out of sight now; it ends with its last use.")
def umount_command(mountpoint: str, lazy: bool) -> int:
    """Unmounts MOUNTPOINT and returns when its daemon has stored everything and ended."""
    try:
        umount.end_mount(mountpoint, lazy=lazy)
    except mountpoints.MountpointError as error:
        return _fail(ExitCode.USAGE, str(error))
    except (mountpoints.UnmountFailed, umount.StillDraining) as error:
        return _fail(ExitCode.FAILED, str(error))
    return ExitCode.OK


# --- looking at mounts and into storage, and looking after it ------------------------------------------------

for _command in (
    *cli_status.COMMANDS,
    *cli_reading.COMMANDS,
    *cli_looking.COMMANDS,
    *cli_cache.COMMANDS,
    *cli_maintenance.COMMANDS,
    *cli_system.COMMANDS,
):
    layerfs.add_command(_command)

cli_settings.make_settable(layerfs)
cli_system.complete_values(layerfs)
cli_system.teach(layerfs)
