"""The command that fills the content cache: `warm`.

What it prints comes from storage, which anybody may have written: every text is escaped before it is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from layerfs import config
from layerfs.command import (
    Fields,
    Output,
    SourceCommand,
    run_reading,
    source_argument,
)
from layerfs.exits import ExitCode

if TYPE_CHECKING:
    from layerfs.reference import Reference
    from layerfs.registry import Registry
    from layerfs.source import Source
    from layerfs.warming import Warmed

_EXIT_CODES: Final = """\b
Exit codes:
  0   all that the images need is in the cache
  1   the arguments, the source or the cache cannot be used, or an image is not there
  4   internal error: please report it, with the log
  8   interrupted; what was fetched is gone on with the next time
  32  something is missing or damaged, or the storage is out of reach
"""


def _references(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[Reference, ...]:
    from layerfs.reference import InvalidReference, Reference

    try:
        return tuple(Reference.parse(text) for text in texts)
    except InvalidReference as error:
        raise click.UsageError(str(error)) from None


def _parse(_context: click.Context, parameter: click.Parameter, text: str | None) -> Any:
    if text is None or parameter.name is None:
        return None
    try:
        return config.parse_value(parameter.name, text)
    except config.InvalidOption as error:
        raise click.UsageError(str(error)) from None


@click.command("warm", cls=SourceCommand, epilog=_EXIT_CODES)
@source_argument()
@click.argument("references", metavar="REPO[:TAG|@DIGEST]…", nargs=-1, required=True, callback=_references)
@click.option(
    "--cache-dir",
    metavar="DIRECTORY",
    callback=_parse,
    help="Where mounts keep content: what they are given as --cache-dir [default: ~/.cache/layerfs].",
)
@click.option("--cache-size", metavar="SIZE", callback=_parse, help="How much may be kept there [default: 10G].")
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1, 16),
    default=3,
    help="How many blobs are fetched at a time.",
    show_default=True,
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json"]),
    default="table",
    help="Lines for people, or one JSON object a line with a summary last [default: table].",
)
def warm_command(
    source: Source,
    references: tuple[Reference, ...],
    cache_dir: str | None,
    cache_size: int | None,
    jobs: int,
    output_format: str,
) -> int:
    """Fetches what images in SOURCE need into the cache that mounts read from: manifests, configurations and layers.

    SOURCE is what `layerfs mount` takes. REPO alone means all its tags. Every blob is compared with its digest. What
    was interrupted goes on where it was.
    """

    async def work(registry: Registry, output: Output) -> int:
        from layerfs.registry.content_cache import ContentCache

        cache = ContentCache(cache_dir or config.default_cache_directory(), cache_size or config.DEFAULT_CACHE_SIZE)
        try:
            return await _warm(registry, cache, references, jobs, _Results(output, as_json=output_format == "json"))
        finally:
            await cache.close()

    from layerfs.registry.cache import CacheUnusable
    from layerfs.warming import CacheTooSmall

    return run_reading(
        source,
        work,
        usage_errors=(CacheUnusable, CacheTooSmall),
        interrupted="interrupted; the same command goes on where this one was",
    )


async def _warm(registry: Registry, cache: Any, references: Sequence[Reference], jobs: int, results: _Results) -> int:
    from contextlib import aclosing

    from layerfs import warming
    from layerfs.progress import ProgressDisplay
    from layerfs.registry.maintenance.progress import Progress

    wanted = await warming.find_wanted(registry, references)
    with ProgressDisplay() as display:

        def report(done: int, total: int) -> None:
            display.show(Progress("fetching", "bytes", done, total))

        async with aclosing(warming.warm(registry, cache, wanted, jobs=jobs, report=report)) as warmed:
            async for each in warmed:
                with display.hidden():
                    results.add(each)
    results.finish()
    return results.exit_code


class _Results:
    """Prints what became of each blob, and what that comes to."""

    def __init__(self, output: Output, *, as_json: bool) -> None:
        self._output = output
        self._as_json = as_json
        self._counts: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    @property
    def exit_code(self) -> int:
        return ExitCode.FAILED if self._counts["failed"] else ExitCode.OK

    def add(self, warmed: Warmed) -> None:
        state = "failed" if warmed.error is not None else "present" if warmed.was_there else "fetched"
        self._counts[state] += 1
        self._bytes[state] += warmed.size
        if self._as_json:
            self._output.json(_fields(warmed, state))
        else:
            reason = f"  {warmed.error}" if warmed.error is not None else ""
            self._output.line(f"{state:<8} {warmed.digest} {warmed.size:>12}{reason}")
        self._output.flush()

    def finish(self) -> None:
        """Prints the summary."""
        states = ("fetched", "present", "failed")
        if self._as_json:
            self._output.json({"summary": {state: self._counts[state] for state in states} | _sizes(self._bytes)})
            return
        parts = [f"{self._counts[state]} {state} ({self._bytes[state]} bytes)" for state in states[:2]]
        failed = f", {self._counts['failed']} failed" if self._counts["failed"] else ""
        self._output.line(f"{', '.join(parts)}{failed}")


def _sizes(counted: Counter[str]) -> Fields:
    return {"bytesFetched": counted["fetched"], "bytesPresent": counted["present"]}


def _fields(warmed: Warmed, state: str) -> Fields:
    fields: Fields = {"digest": str(warmed.digest), "size": warmed.size, "state": state}
    return fields | ({"error": str(warmed.error)} if warmed.error is not None else {})


COMMANDS: Final = (warm_command,)
