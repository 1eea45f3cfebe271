"""The commands that look after a storage: `check` and `purge-uploads`.

What they print comes from storage, which anybody may have written: every text is escaped before it is shown.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import timedelta
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import click

from layerfs.command import (
    Output,
    OutputFailed,
    SourceCommand,
    report_bug,
    run_on_registry,
    say,
    source_argument,
)
from layerfs.exits import ExitCode

if TYPE_CHECKING:
    from layerfs.progress import ProgressDisplay
    from layerfs.registry import Registry
    from layerfs.registry.maintenance import FailedUpload, Fault, KeptUpload, PurgedUpload
    from layerfs.source import Source

_FORMAT = click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json"]),
    default="table",
    help="Lines for people, or one JSON object a line with a summary last [default: table].",
)


# --- check -------------------------------------------------------------------------------------------------------


class CheckExitCode(IntEnum):
    """Those of fsck(8), which are bits: what is left can be added to what could not be looked at."""

    CLEAN = 0
    FAULTS = 4
    FAILED = 8
    USAGE = 16
    INTERRUPTED = 32


_CHECK_EXIT_CODES: Final = """\b
Exit codes, those of fsck(8), added up:
  0   nothing is wrong
  4   there are faults
  8   something could not be looked at, or the storage is out of reach
  16  the arguments or the source cannot be used
  32  interrupted
"""


class _CheckCommand(SourceCommand):
    #: What `cli.main` exits with when the arguments are wrong.
    usage_exit_code = CheckExitCode.USAGE


@click.command("check", cls=_CheckCommand, epilog=_CHECK_EXIT_CODES)
@source_argument()
@click.option("--deep", is_flag=True, help="Read every blob and compare its bytes with its digest.")
@click.option("--repository", "repositories", metavar="NAME", multiple=True, help="Only this one; may be repeated.")
@click.option(
    "-j", "--jobs", type=click.IntRange(1, 64), default=4, help="How much is read at a time.", show_default=True
)
@_FORMAT
def check_command(source: Source, deep: bool, repositories: tuple[str, ...], jobs: int, output_format: str) -> int:
    """Finds what is wrong in the registry storage SOURCE, and changes nothing.

    SOURCE is what `layerfs mount` takes. Registries and mounts may go on using it meanwhile. Nothing is printed if
    nothing is wrong. Without --deep only the sizes of blobs are compared, with those in the manifests.
    """

    async def work(registry: Registry, output: Output) -> int:
        from contextlib import aclosing

        from layerfs.progress import ProgressDisplay
        from layerfs.registry.maintenance import check

        found = _Faults(output, as_json=output_format == "json")
        with ProgressDisplay() as display:
            checking = check(registry, deep=deep, repositories=repositories, jobs=jobs, report=display.show)
            async with aclosing(checking) as faults:
                async for fault in faults:
                    found.add(fault, display)
        found.finish()
        return found.exit_code

    try:
        return run_on_registry(source, work, verb="check")
    except Exception as error:  # noqa: BLE001 - all of it ends in an exit code
        return _check_failed(error)
    except KeyboardInterrupt:
        say("interrupted")
        return CheckExitCode.INTERRUPTED


def _check_failed(error: Exception) -> int:
    from layerfs.errors import InvalidName, LayerfsError, RepositoryUnknown
    from layerfs.source import SourceUnusable

    match error:
        case click.ClickException():
            raise error
        case SourceUnusable():
            say(str(error))
            return CheckExitCode.USAGE if error.is_user_error else CheckExitCode.FAILED
        case InvalidName() | RepositoryUnknown():
            say(str(error))
            return CheckExitCode.USAGE
        case LayerfsError() | OutputFailed():
            say(str(error))
        case _:
            report_bug(error)
    return CheckExitCode.FAILED


class _Faults:
    """Prints faults as they come, and what they come to."""

    def __init__(self, output: Output, *, as_json: bool) -> None:
        self._output = output
        self._as_json = as_json
        self._kinds: Counter[str] = Counter()
        self._severities: Counter[str] = Counter()
        self._remedies: dict[str, str] = {}

    def add(self, fault: Fault, display: ProgressDisplay) -> None:
        self._kinds[fault.kind] += 1
        self._severities[fault.severity] += 1
        self._remedies[fault.kind] = fault.remedy
        with display.hidden():
            if self._as_json:
                self._output.json({"type": "fault", **fault.as_dict()})
            else:
                self._output.line(f"{fault.severity:<7}  {fault.kind:<25}  {fault.place}")
                self._output.line(f"         {fault.explanation}")
            self._output.flush()

    def finish(self) -> None:
        """The summary; none for people if there is nothing to sum up."""
        count = self._kinds.total()
        if self._as_json:
            numbers = {"errors": self._severities["error"], "warnings": self._severities["warning"]}
            self._output.json({"type": "summary", "faults": count, **numbers, "kinds": dict(self._kinds)})
        elif count:
            self._output.line("")
            self._output.line("What to do:")
            for kind, remedy in self._remedies.items():
                self._output.line(f"  {kind:<25}  {remedy}")
            self._output.line("")
            errors = self._severities["error"]
            self._output.line(
                f"{_counted(count, 'fault')}: {_counted(errors, 'error')}, {_counted(count - errors, 'warning')}"
            )

    @property
    def exit_code(self) -> int:
        unreadable = self._kinds["unreadable"]
        code = CheckExitCode.FAILED if unreadable else CheckExitCode.CLEAN
        return code | (CheckExitCode.FAULTS if self._kinds.total() > unreadable else CheckExitCode.CLEAN)


# --- purge-uploads -------------------------------------------------------------------------------------------------

_PURGE_EXIT_CODES: Final = """\b
Exit codes:
  0   success, also if there was nothing to delete
  1   the arguments or the source cannot be used, or this user may not look at, or not delete, some uploads
  4   internal error: please report it, with the log
  8   interrupted
  32  some uploads could not be looked at or deleted, the storage is out of reach, or the output cannot be written
In every case what was reported as deleted is deleted.
"""

_UNITS: Final = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_AGE: Final = re.compile(r"(?:\d+(?:\.\d+)?[wdhms])+", re.ASCII)
_AGE_PART: Final = re.compile(r"(\d+(?:\.\d+)?)([wdhms])", re.ASCII)


def parse_age(text: str) -> timedelta:
    """The time that `text` is: numbers with a unit each (168h, 7d, 1h30m), or 0. Raises `ValueError`."""
    if text == "0":
        return timedelta()
    if not _AGE.fullmatch(text):
        raise ValueError(f"invalid age {text!r}: expected numbers with a unit of w, d, h, m or s, like 168h or 7d")
    try:
        return sum(
            (timedelta(**{_UNITS[unit]: float(number)}) for number, unit in _AGE_PART.findall(text)), timedelta()
        )
    except OverflowError:
        raise ValueError(f"invalid age {text!r}: too long") from None


def _age_option(_context: click.Context, _parameter: click.Parameter, text: str) -> timedelta:
    try:
        return parse_age(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


@click.command("purge-uploads", cls=SourceCommand, epilog=_PURGE_EXIT_CODES)
@source_argument()
@click.option(
    "--older-than",
    metavar="AGE",
    default="168h",
    show_default=True,
    callback=_age_option,
    help="How long ago they were begun: 168h, 7d, 90m, 0.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be deleted.")
@_FORMAT
def purge_uploads_command(source: Source, older_than: timedelta, dry_run: bool, output_format: str) -> int:
    """Deletes unfinished uploads from the registry storage SOURCE that nobody will finish.

    Also those that no registry ever purges: of which it is not known when they were begun (then the last change
    counts), what is left of cancelled ones, whose id is no UUID. Never one that is being written: changed within the
    last hour, or within AGE if that is less, or open for writing. What cannot be looked at or deleted is named, and
    the others go nevertheless.
    """

    async def work(registry: Registry, output: Output) -> int:
        from contextlib import aclosing

        from layerfs.registry.maintenance import purge_uploads

        found = _Purged(output, as_json=output_format == "json", dry_run=dry_run)
        purging = purge_uploads(
            registry, older_than=older_than, dry_run=dry_run, on_kept=found.keep, on_failed=found.fail
        )
        async with aclosing(purging) as uploads:
            async for upload in uploads:
                found.add(upload)
        found.finish()
        return found.exit_code

    try:
        return run_on_registry(source, work, verb="purge")
    except Exception as error:  # noqa: BLE001 - all of it ends in an exit code
        return _purge_failed(error)
    except KeyboardInterrupt:
        say("interrupted")
        return ExitCode.INTERRUPTED


def _purge_failed(error: Exception) -> int:
    from layerfs.errors import LayerfsError
    from layerfs.source import SourceUnusable

    match error:
        case click.ClickException():
            raise error
        case SourceUnusable():
            say(str(error))
            return ExitCode.USAGE if error.is_user_error else ExitCode.FAILED
        case LayerfsError() | OutputFailed():
            say(str(error))
            return _exit_code_of(error)
        case _:
            report_bug(error)
            return ExitCode.BUG


def _exit_code_of(error: Exception) -> ExitCode:
    from layerfs.errors import AccessDenied, StorageReadOnly

    return ExitCode.USAGE if isinstance(error, AccessDenied | StorageReadOnly) else ExitCode.FAILED


class _Purged:
    """Prints uploads as they go, and what they come to."""

    def __init__(self, output: Output, *, as_json: bool, dry_run: bool) -> None:
        self._output = output
        self._as_json = as_json
        self._dry_run = dry_run
        self._count = 0
        self._bytes = 0
        self._failed = 0
        self.exit_code = ExitCode.OK

    def add(self, upload: PurgedUpload) -> None:
        if self._as_json:
            started_at = upload.started_at.isoformat() if upload.started_at else None
            fields = {"repository": upload.repository, "upload": upload.upload, "startedAt": started_at}
            self._output.json({"type": "upload", **fields, "age": int(upload.age.total_seconds()), "size": upload.size})
        else:
            if not self._count:
                self._output.line(f"{'UPLOAD':<36}  {'AGE':>10}  {'SIZE':>14}  REPOSITORY")
            age = format_age(upload.age)
            self._output.line(f"{upload.upload:<36}  {age:>10}  {upload.size:>14}  {upload.repository}")
        self._count += 1
        self._bytes += upload.size
        # What is gone has to be known, whatever happens next.
        self._output.flush()

    def keep(self, upload: KeptUpload) -> None:
        if self._as_json:
            self._output.json(
                {"type": "kept", "repository": upload.repository, "upload": upload.upload, "reason": upload.reason}
            )
        else:
            say(f"kept {upload.upload} in {upload.repository}: {upload.reason}")

    def fail(self, upload: FailedUpload) -> None:
        self._failed += 1
        # The gravest counts: 32 says that it may work the next time.
        self.exit_code = max(self.exit_code, _exit_code_of(upload.error))
        if self._as_json:
            self._output.json(
                {
                    "type": "failed",
                    "repository": upload.repository,
                    "upload": upload.upload,
                    "reason": str(upload.error),
                }
            )
        else:
            what = f"{upload.upload} in {upload.repository}" if upload.upload else f"the uploads of {upload.repository}"
            say(f"cannot purge {what}: {upload.error}")

    def finish(self) -> None:
        if self._as_json:
            numbers = {"uploads": self._count, "size": self._bytes, "failed": self._failed}
            self._output.json({"type": "summary", **numbers, "dryRun": self._dry_run})
            return
        deleted = "would be deleted" if self._dry_run else "deleted"
        failed = f"; {self._failed} failed" if self._failed else ""
        self._output.line(f"{_counted(self._count, 'upload')} {deleted}, {self._bytes} bytes{failed}")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def format_age(age: timedelta) -> str:
    """Days and hours, or what is less: `8d03h`, `5h07m`, `12m`."""
    minutes = max(0, int(age.total_seconds() // 60))
    days, hours = divmod(minutes // 60, 24)
    if days:
        return f"{days}d{hours:02}h"
    return f"{hours}h{minutes % 60:02}m" if hours else f"{minutes}m"


COMMANDS: Final = (check_command, purge_uploads_command)
