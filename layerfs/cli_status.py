"""The commands that look at mounts: `status`, `top`, `why`.

They ask each mount for its own files (`.layerfs`), by way of `watching`, so that one whose daemon hangs is said to hang
and is not waited for.
"""

from __future__ import annotations

import functools
import json
import select
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

import click

from layerfs.advice import advice_for
from layerfs.command import say
from layerfs.exits import ExitCode
from layerfs.latency import BUCKETS, LatencyHistogram
from layerfs.terminal import (
    CannotWrite,
    draw,
    human_bytes,
    human_latency,
    human_seconds,
    make_console,
    make_table,
    plain,
    plain_lines,
    shown,
)
from layerfs.watching import (
    NotInAMount,
    Place,
    Report,
    State,
    Unanswered,
    find_mount,
    find_mounts,
    find_place,
    look_at,
    read_failures,
    report_on,
    report_on_all,
)

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType

_EXIT_CODES: Final = """\b
Exit codes:
  0   success, and all mounts that were asked for are serving
  1   the arguments cannot be used: nothing of layerfs is mounted there
  8   interrupted
  32  a mount is dead, hangs, or cannot be looked at
"""

#: Lines of each part of `top`, and failures that `why` shows.
_LINES: Final = 8
_FAILURES_SHOWN: Final = 5

_STYLES: Final = {State.SERVING: "green", State.DEAD: "bold red", State.HUNG: "bold red", State.CLOSED: "yellow"}

Fields: TypeAlias = Mapping[str, Any]

_FORMAT = click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json"]),
    default="table",
    help="A table for people, or one JSON object [default: table].",
)


def _told(command: Callable[..., int]) -> Callable[..., int]:
    """The command, with what stops it said in a line and made an exit code."""

    @functools.wraps(command)
    def run(**arguments: Any) -> int:
        try:
            return command(**arguments)
        except NotInAMount as error:
            say(str(error))
            return ExitCode.USAGE
        except (Unanswered, CannotWrite) as error:
            say(str(error))
            return ExitCode.FAILED

    return run


def _print_json(fields: Fields) -> None:
    draw(make_console(), plain_lines(json.dumps(fields, indent=2)))


def _reports(mountpoint: str | None) -> list[Report]:
    return report_on_all(find_mounts() if mountpoint is None else [find_mount(mountpoint)])


def _exit_code(reports: Sequence[Report]) -> ExitCode:
    return ExitCode.OK if all(report.state is State.SERVING for report in reports) else ExitCode.FAILED


# --- status ------------------------------------------------------------------------------------------------------


@click.command("status", epilog=_EXIT_CODES)
@click.argument("mountpoint", metavar="[MOUNTPOINT]", required=False)
@_FORMAT
@_told
def status_command(mountpoint: str | None, output_format: str) -> int:
    """Shows the mounts of layerfs on this machine, or the one on MOUNTPOINT: what they do, and what failed.

    A mount whose daemon has ended or does not answer within 5 seconds is said to be dead, or to hang.
    """
    reports = _reports(mountpoint)
    if output_format == "json":
        _print_json({"mounts": [_report_fields(report) for report in reports]})
        return _exit_code(reports)
    console = make_console()
    if not reports:
        draw(console, plain("no mounts of layerfs"))
    for number, report in enumerate(reports):
        draw(console, *([plain("")] if number else []), _overview(report))
    return _exit_code(reports)


def _report_fields(report: Report) -> Fields:
    mount = report.mount
    fields = {"mountpoint": shown(mount.path), "source": shown(mount.source), "state": report.state.value}
    return fields | ({"status": report.status} if report.status else {"reason": shown(report.reason)})


def _overview(report: Report) -> Group:
    from rich.console import Group

    parts: list[RenderableType] = [_head(report)]
    if report.state is not State.SERVING:
        return Group(*parts, plain(f"  {report.reason}"))
    status = report.status
    parts.append(_facts(status))
    if uploads := _list(status, "uploads"):
        parts.append(_uploads_table(uploads))
    if waiting := [each for each in _list(status, "under_way") if _number(each, "seconds") >= 1]:
        parts.append(_waiting_table(waiting))
    if failed := _list(status, "errors_by"):
        parts.append(_errors_table(failed))
    return Group(*parts)


def _head(report: Report) -> RenderableType:
    from rich.text import Text

    mount = report.mount
    words = (plain(mount.path, "bold"), plain(report.state.value, _STYLES[report.state]), plain(mount.source))
    return Text("  ").join(words)


def _facts(status: Fields) -> RenderableType:
    backend = _fields(status, "backend")
    rates = _fields(status, "throughput")
    table = make_table("", "")
    table.show_header = False
    options = [name for name in ("read_only", "allow_delete") if status.get(name)]
    version = f"layerfs {status.get('version', '?')}, pid {status.get('pid', '?')}"
    up = human_seconds(_number(status, "uptime_seconds"))
    rows = [
        ("daemon", f"{version}, up {up}{''.join(f', {each}' for each in options)}"),
        ("backend", f"{backend.get('driver', '?')}, {backend.get('under_way', 0)} requests under way"),
        ("read", _rate_words(rates, "bytes_read", _number(status, "bytes_read"))),
        ("written", _rate_words(rates, "bytes_written", _number(status, "bytes_written"))),
        ("open", f"{status.get('open_files', 0)} files, {status.get('open_directories', 0)} directories"),
        ("uploads", _upload_words(status)),
        ("caches", _cache_words(status)),
        ("errors", f"{status.get('errors', 0)}{_last_error_words(status)}"),
    ]
    for name, text in rows:
        table.add_row(plain(f"  {name}"), plain(text))
    return table


def _rate_words(rates: Fields, name: str, total: float) -> str:
    words = [f"{human_bytes(_number(_fields(rates, window), name))}/s in {window}" for window in ("1s", "10s", "60s")]
    return f"{', '.join(words)}; {human_bytes(total)} in all"


def _upload_words(status: Fields) -> str:
    counts = (
        f"{status.get('uploads_committed', 0)} finished, {status.get('uploads_failed', 0)} not finished by an error"
    )
    return f"{len(_list(status, 'uploads'))} being written, {counts}"


def _cache_words(status: Fields) -> str:
    words = []
    for name, figures in _fields(status, "caches").items():
        hits, asked = _number(figures, "hits"), _number(figures, "hits") + _number(figures, "misses")
        words.append(f"{name} {100 * hits / asked:.0f} % of {asked:.0f}" if asked else f"{name} not used")
    return ", ".join([*words, f"read-ahead {human_bytes(_number(status, 'read_ahead_bytes'))}"])


def _last_error_words(status: Fields) -> str:
    last = _fields(status, "last_error")
    if not last:
        return ""
    return f", the last: {last.get('operation')} {last.get('path')!r}: {last.get('error')}: {last.get('reason')}"


def _uploads_table(uploads: Sequence[Fields]) -> RenderableType:
    table = make_table("  UPLOAD", "RECEIVED", "STORED", "SPEED", right=("RECEIVED", "STORED", "SPEED"))
    for each in uploads:
        size, pending = _number(each, "size"), _number(each, "pending")
        speed = f"{human_bytes(_number(each, 'bytes_per_second'))}/s"
        cells = (f"  {each.get('path')}", human_bytes(size), human_bytes(size - pending), speed)
        table.add_row(*map(plain, cells))
    return table


def _waiting_table(waiting: Sequence[Fields]) -> RenderableType:
    table = make_table("  WAITING", "SECONDS", "PATH", right=("SECONDS",))
    for each in waiting:
        table.add_row(
            plain(f"  {each.get('operation')}"), plain(f"{_number(each, 'seconds'):.1f}"), plain(each["path"])
        )
    return table


def _errors_table(failed: Sequence[Fields]) -> RenderableType:
    table = make_table("  FAILED", "ERRNO", "COUNT", right=("COUNT",))
    for each in failed:
        table.add_row(plain(f"  {each.get('operation')}"), plain(each.get("error")), plain(each.get("count")))
    return table


# --- top ---------------------------------------------------------------------------------------------------------


@click.command("top", epilog=_EXIT_CODES)
@click.argument("mountpoint", metavar="[MOUNTPOINT]", required=False)
@click.option("--interval", type=click.FloatRange(min=0.1), default=1.0, help="Seconds between two looks [default: 1].")
@click.option("--once", is_flag=True, help="Print one picture, of all the time since the mount began, and end.")
@_told
def top_command(mountpoint: str | None, interval: float, once: bool) -> int:
    """Shows live what the mount on MOUNTPOINT does: how much, how fast, which paths, which uploads, what fails.

    Without MOUNTPOINT it is the only mount there is. 'q' or Ctrl-C ends it.
    """
    mount = find_mount(mountpoint if mountpoint is not None else _only_mount())
    report = report_on(mount)
    console = make_console()
    if once or report.state is not State.SERVING or not console.is_terminal:
        draw(console, _picture(report, None))
        return _exit_code([report])
    with suppress(KeyboardInterrupt):
        return _watch(console, report, interval)
    return ExitCode.OK


def _only_mount() -> str:
    mounts = find_mounts()
    if len(mounts) == 1:
        return mounts[0].path
    if not mounts:
        raise NotInAMount("no mounts of layerfs")
    raise NotInAMount(f"there are several mounts; name one of {', '.join(repr(mount.path) for mount in mounts[:5])}")


def _watch(console: Console, report: Report, interval: float) -> int:
    from rich.live import Live

    before: Fields | None = None
    # No thread: asking a mount forks.
    with Live(console=console, screen=True, auto_refresh=False) as live, _Keys() as keys:
        while report.state is State.SERVING:
            live.update(_picture(report, before), refresh=True)
            before = report.status
            if keys.wait("q", interval):
                return ExitCode.OK
            report = report_on(report.mount)
    say(report.reason)
    return ExitCode.FAILED


class _Keys:
    """The keyboard, key by key, while it is a terminal."""

    def __enter__(self) -> Self:
        self._settings: list[Any] | None = None
        if sys.stdin is not None and sys.stdin.isatty():
            import termios
            import tty

            self._settings = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        return self

    def __exit__(self, *_: object) -> None:
        if self._settings is not None:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._settings)

    def wait(self, key: str, seconds: float) -> bool:
        """Whether `key` was typed within `seconds`."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._settings is None:
                time.sleep(left)
            elif select.select([sys.stdin], [], [], left)[0] and sys.stdin.read(1) == key:
                return True
        return False


def _picture(report: Report, before: Fields | None) -> RenderableType:
    """One screen: since `before`, which is an earlier status of the mount, or since it began."""
    from rich.console import Group

    if report.state is not State.SERVING:
        return _overview(report)
    status = report.status
    parts: list[RenderableType] = [_head(report), _facts(status), plain(""), _operations_table(status, before)]
    if hottest := [each for each in _list(status, "hottest") if _number(each, "bytes_per_second")]:
        parts += [plain(""), _hottest_table(hottest[:_LINES])]
    if uploads := _list(status, "uploads"):
        parts += [plain(""), _uploads_table(uploads[:_LINES])]
    if waiting := [each for each in _list(status, "under_way") if _number(each, "seconds") >= 1]:
        parts += [plain(""), _waiting_table(waiting[:_LINES])]
    if failed := _list(status, "errors_by"):
        parts += [plain(""), _errors_table(failed[:_LINES])]
    return Group(*parts)


def _operations_table(status: Fields, before: Fields | None) -> RenderableType:
    seconds = _number(status, "uptime_seconds") - (_number(before, "uptime_seconds") if before else 0.0)
    numbers = ("PER SECOND", "COUNT", "P50", "P99")
    table = make_table("  OPERATION", *numbers, right=numbers)
    earlier = _latencies(before) if before else {}
    rows = []
    for operation, latency in _latencies(status).items():
        recent = latency.since(earlier.get(operation, LatencyHistogram()))
        if recent.count:
            rows.append((recent.count, operation, recent))
    for count, operation, recent in sorted(rows, key=lambda row: row[0], reverse=True)[: 2 * _LINES]:
        quantiles = (human_latency(recent.quantile(0.5)), human_latency(recent.quantile(0.99)))
        cells = (f"  {operation}", f"{count / max(seconds, 1e-9):.1f}", str(count), *quantiles)
        table.add_row(*map(plain, cells))
    return table


def _latencies(status: Fields) -> dict[str, LatencyHistogram]:
    found = {}
    for operation, fields in _fields(status, "latencies").items():
        bits = _fields(fields, "bits")
        counts = [int(bits.get(str(each), 0)) for each in range(BUCKETS)]
        found[str(operation)] = LatencyHistogram(counts, int(_number(fields, "seconds") * 1e9))
    return found


def _hottest_table(hottest: Sequence[Fields]) -> RenderableType:
    table = make_table("  SPEED", "HOTTEST PATHS", right=("  SPEED",))
    for each in hottest:
        speed = f"{human_bytes(_number(each, 'bytes_per_second'))}/s"
        table.add_row(plain(f"  {speed}"), plain(each.get("path")))
    return table


# --- why ---------------------------------------------------------------------------------------------------------


@click.command("why", epilog=_EXIT_CODES)
@click.argument("path", metavar="PATH")
@click.option("--all", "everything", is_flag=True, help=f"All that is remembered, not only the last {_FAILURES_SHOWN}.")
@_FORMAT
@_told
def why_command(path: str, everything: bool, output_format: str) -> int:
    """Shows what failed last at PATH in a mount, or below or above it, why, and what to do about it.

    PATH need not exist. A mount remembers its last 200 failures, and the last 200 names that were not there.
    """
    place = find_place(path)
    failures = read_failures(place.mount, "errors")
    exists: bool | None = None
    missing: list[dict[str, Any]] = []
    # What waits for the storage there is known without looking, which would have to wait as well.
    waiting = _waiting(place)
    if not any(_rank(place.path, each) == 0 for each in (*failures, *waiting)):
        # Looking has the mount say why something is not there, or fail as it did for others.
        exists = look_at(place)
        failures = failures if exists is not None else read_failures(place.mount, "errors")
        missing = read_failures(place.mount, "missing") if exists is False else []
        waiting = waiting if exists is not None else _waiting(place)
    found = _about(place, failures, missing)
    if not everything:
        found = found[:_FAILURES_SHOWN]
    if output_format == "json":
        fields = [dict(each) | {"advice": advice_for(str(each.get("kind")))} for each in found]
        answer = {"path": shown(place.path), "exists": exists, "failures": fields}
        _print_json(answer | ({"waiting": waiting} if waiting else {}))
    else:
        _show_failures(place, exists, found, waiting)
    return ExitCode.OK


def _waiting(place: Place) -> list[Fields]:
    """The operations there that have had no answer for a second or longer."""
    status = report_on(place.mount).status
    return [
        each
        for each in _list(status, "under_way")
        if _number(each, "seconds") >= 1
        and _rank(place.path, {"path": str(each.get("path")).split(" -> ")[0]}) is not None
    ]


def _about(place: Place, failures: Sequence[Fields], missing: Sequence[Fields]) -> list[Fields]:
    """What has to do with the place: first of itself, then of what is below it, then above it; the newest first."""
    ranked = [(2 * rank, each) for each in failures if (rank := _rank(place.path, each)) is not None]
    # Of what is not there, only itself and the directory that should have had it. Looking made it the newest.
    ranked += [(2 * rank + 1, each) for each in missing if (rank := _rank(place.path, each)) in (0, 2)]
    # Both come with the newest first, and sorting keeps that.
    ranked.sort(key=lambda pair: pair[0])
    return [each for _, each in ranked]


def _rank(path: str, failure: Fields) -> int | None:
    ranks = []
    for name in ("path", "target"):
        other = str(failure.get(name) or "").strip("/")
        if name == "target" and not other:
            continue
        if other == path:
            ranks.append(0)
        elif other.startswith(f"{path}/") or not path:
            ranks.append(1)
        elif path.startswith(f"{other}/") or not other:
            ranks.append(2)
    return min(ranks, default=None)


def _show_failures(place: Place, exists: bool | None, found: Sequence[Fields], waiting: Sequence[Fields]) -> None:
    console = make_console()
    for each in waiting:
        draw(console, plain(f"{each.get('operation')} {each.get('path')!r}: no answer yet", "bold"))
        draw(
            console,
            plain(f"  why:        it has waited for {_number(each, 'seconds'):.0f} s (request {each.get('request')})"),
        )
        draw(console, plain(f"  what to do: {advice_for('DeadlineExceeded')}"), plain(""))
    if not found and not waiting:
        text = {True: "is there", False: "is not there", None: "cannot be looked at"}[exists]
        draw(console, plain(f"{place.path or '/'!r} {text}, and no failure is remembered at it, below or above it"))
    for number, each in enumerate(found):
        if number:
            draw(console, plain(""))
        target = f" -> {each['target']!r}" if each.get("target") else ""
        head = f"{each.get('operation')} {each.get('path')!r}{target}: {each.get('error')}"
        draw(console, plain(f"{head} ({_ago(str(each.get('time')))}, request {each.get('request')})", "bold"))
        draw(console, plain(f"  why:        {each.get('reason')}"))
        draw(console, plain(f"  what to do: {advice_for(str(each.get('kind')))}"))


def _ago(moment: str) -> str:
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    except (TypeError, ValueError):
        return moment
    return f"{human_seconds(max(seconds, 0))} ago"


# --- what a mount says, whatever it says -------------------------------------------------------------------------


def _number(fields: Fields, name: str) -> float:
    value = fields.get(name)
    return value if isinstance(value, int | float) else 0.0


def _fields(fields: Fields, name: str) -> Fields:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def _list(fields: Fields, name: str) -> list[Fields]:
    value = fields.get(name)
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


COMMANDS: Final = (status_command, top_command, why_command)
