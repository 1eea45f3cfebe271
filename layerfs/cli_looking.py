"""The commands that show a storage as a whole: `du` (what uses how much) and `tree` (what consists of what).

What they print comes from storage, which anybody may have written: every text is escaped before it is shown.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from layerfs.command import Output, OutputFailed, SourceCommand, run_reading, say, source_argument
from layerfs.exits import ExitCode
from layerfs.terminal import draw, human_bytes, make_console, make_table, plain

if TYPE_CHECKING:
    from rich.tree import Tree

    from layerfs.registry import Registry
    from layerfs.source import Source
    from layerfs.usage import ImageUse, RepositoryUse, StorageUse

_EXIT_CODES: Final = """\b
Exit codes:
  0   success
  1   the arguments or the source cannot be used, or there is no such repository
  4   internal error: please report it, with the log
  8   ended by a signal
  32  something could not be looked at, the storage is out of reach, or the output cannot be written
"""

_FORMAT = click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json"]),
    default="table",
    help="A picture for people, or one JSON object [default: table].",
)


# --- du ----------------------------------------------------------------------------------------------------------


@click.command("du", cls=SourceCommand, epilog=_EXIT_CODES)
@source_argument()
@click.argument("repositories", metavar="[REPO]…", nargs=-1)
@click.option("--bytes", "exactly", is_flag=True, help="Sizes in bytes, not in larger units.")
@click.option(
    "--largest", metavar="COUNT", type=click.IntRange(min=0), default=10, help="Largest layers [default: 10]."
)
@click.option("--html", metavar="FILE", help="Write a page with a picture to click through to FILE, for any browser.")
@_FORMAT
def du_command(
    source: Source, repositories: tuple[str, ...], exactly: bool, largest: int, html: str | None, output_format: str
) -> int:
    """Shows what uses how much of the storage SOURCE: all repositories, or only REPO….

    UNIQUE is what no other repository has, FREED what removing the repository and collecting garbage would free:
    that, and its unfinished uploads. Nothing is changed, and no layer is read.
    """

    async def work(registry: Registry, output: Output) -> int:
        from layerfs.progress import ProgressDisplay
        from layerfs.reading import find_repository
        from layerfs.source import display_name
        from layerfs.usage import measure_storage

        for name in repositories:
            await find_repository(registry, name)
        with ProgressDisplay() as display:
            use = await measure_storage(registry, images=html is not None, report=display.show)
        chosen = [each for each in use.repositories if not repositories or each.name in repositories]
        if html is not None:
            _write_page(html, use, display_name(source))
        if output_format == "json":
            output.json(_usage_fields(use, chosen, largest), indent=2)
        elif html is None:
            _show_usage(use, chosen, largest, human=not exactly)
        return _tell_problems(use)

    return run_reading(source, work)


def _tell_problems(use: StorageUse) -> int:
    for problem in use.problems:
        say(f"cannot be looked at: {problem}")
    return ExitCode.FAILED if use.problems else ExitCode.OK


def _usage_fields(use: StorageUse, chosen: Sequence[RepositoryUse], largest: int) -> dict[str, Any]:
    return {
        "repositories": [
            {
                "repository": each.name,
                "size": each.size,
                "unique": use.unique_bytes(each),
                "shared": each.size - use.unique_bytes(each),
                "freed": use.freed_bytes(each),
                "blobs": len(each.sizes),
                "tags": len(each.tags),
                "uploads": len(each.uploads),
                "uploadSize": sum(each.uploads),
            }
            for each in chosen
        ],
        "largest": [
            {"digest": str(digest), "size": size, "repositories": names}
            for digest, size, names in use.largest(largest, chosen)
        ],
        "total": {
            "repositories": len(use.repositories),
            "size": use.linked_bytes,
            "deduplicated": use.deduplicated_bytes,
            "stored": use.stored_bytes,
            "blobs": use.stored,
            "orphans": use.orphans,
            "orphanedSize": use.orphaned_bytes,
            "uploadSize": sum(sum(each.uploads) for each in use.repositories),
        },
        "problems": use.problems,
    }


def _show_usage(use: StorageUse, chosen: Sequence[RepositoryUse], largest: int, *, human: bool) -> None:
    def size(count: int) -> str:
        return human_bytes(count) if human else str(count)

    console = make_console()
    numbers = ("SIZE", "UNIQUE", "SHARED", "FREED", "BLOBS", "TAGS")
    table = make_table("REPOSITORY", *numbers, right=numbers)
    for each in sorted(chosen, key=lambda each: (-use.freed_bytes(each), each.name)):
        unique = use.unique_bytes(each)
        sizes = (each.size, unique, each.size - unique, use.freed_bytes(each))
        table.add_row(
            plain(each.name), *(plain(size(count)) for count in sizes), str(len(each.sizes)), str(len(each.tags))
        )
    draw(console, table)
    if largest and (ranked := use.largest(largest, chosen)):
        draw(console, plain(""))
        table = make_table("LARGEST", "SIZE", "IN", right=("SIZE",))
        for digest, count, names in ranked:
            more = f", … ({len(names)} repositories)" if len(names) > 3 else ""
            table.add_row(plain(digest), plain(size(count)), plain(", ".join(names[:3]) + more))
        draw(console, table)
    draw(console, plain(""))
    saved = f" ({100 * (1 - use.deduplicated_bytes / use.linked_bytes):.1f} % less)" if use.linked_bytes else ""
    draw(
        console,
        plain(
            f"{len(use.repositories)} repositories refer to {size(use.linked_bytes)}, "
            f"stored once as {size(use.deduplicated_bytes)}{saved}"
        ),
    )
    draw(
        console,
        plain(f"{use.stored} blobs stored, {size(use.stored_bytes)}; {_orphans(use, size(use.orphaned_bytes))}"),
    )


def _orphans(use: StorageUse, size: str) -> str:
    return f"{use.orphans} of them, {size}, in no repository" if use.orphans else "all of them in some repository"


def _write_page(file: str, use: StorageUse, source: str) -> None:
    """Writes the page, to a file whole or not at all. Raises `OutputFailed`."""
    from layerfs.usage_page import make_page

    page = make_page(use, source=source)
    if file == "-":
        raise click.UsageError("--html needs a FILE, not -")
    try:
        if os.path.exists(file) and not os.path.isfile(file):
            # A device or a pipe: in its place there would be a file afterwards.
            with open(file, "w", encoding="ascii") as target:
                target.write(page)
        else:
            _replace(os.path.realpath(file), page)
    except OSError as error:
        raise OutputFailed(f"cannot write {file!r}: {error.strerror}") from error


def _replace(file: str, content: str) -> None:
    with tempfile.NamedTemporaryFile(
        "w", dir=os.path.dirname(file), prefix=".layerfs-", encoding="ascii", delete=False
    ) as temporary:
        try:
            temporary.write(content)
            temporary.flush()
            os.fchmod(temporary.fileno(), 0o666 & ~_umask())
            os.replace(temporary.name, file)
        except BaseException:
            os.unlink(temporary.name)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# --- tree --------------------------------------------------------------------------------------------------------


@click.command("tree", cls=SourceCommand, epilog=_EXIT_CODES)
@source_argument()
@click.argument("repository", metavar="[REPO]", required=False)
@_FORMAT
def tree_command(source: Source, repository: str | None, output_format: str) -> int:
    """Shows the repositories in SOURCE, or REPO, as a tree: tags, platforms, and layers with their sizes.

    Manifests without a tag are in it too, unless they are part of an index. Nothing is changed.
    """

    async def work(registry: Registry, output: Output) -> int:
        from layerfs.progress import ProgressDisplay
        from layerfs.reading import find_repository
        from layerfs.usage import measure_repository, measure_storage

        problems: list[str] = []
        if repository is not None:
            await find_repository(registry, repository)
            found = [await measure_repository(registry, repository, images=True)]
        else:
            with ProgressDisplay() as display:
                use = await measure_storage(registry, images=True, report=display.show)
            found, problems = use.repositories, use.problems
        if output_format == "json":
            output.json({"repositories": [_tree_fields(each) for each in found], "problems": problems}, indent=2)
        else:
            console = make_console()
            for each in found:
                draw(console, _draw_repository(each))
        for problem in problems:
            say(f"cannot be looked at: {problem}")
        return ExitCode.FAILED if problems else ExitCode.OK

    return run_reading(source, work)


def _tree_fields(repository: RepositoryUse) -> dict[str, Any]:
    return {
        "repository": repository.name,
        "size": repository.size,
        "images": [_image_fields(image) for image in repository.images],
    }


def _image_fields(image: ImageUse) -> dict[str, Any]:
    return {
        "digest": str(image.digest),
        "tags": list(image.tags),
        "mediaType": image.media_type or None,
        "platform": image.platform,
        "size": sum(image.sizes().values()),
        "problem": image.problem or None,
        "parts": [{"kind": part.kind, "digest": str(part.digest), "size": part.size} for part in image.parts],
        "manifests": [_image_fields(child) for child in image.children],
    }


def _draw_repository(repository: RepositoryUse) -> Tree:
    from rich.tree import Tree

    root = Tree(plain(f"{repository.name}  {human_bytes(repository.size)}", "bold"))
    for image in repository.images:
        _draw_image(root, image)
    return root


def _draw_image(parent: Tree, image: ImageUse) -> None:
    words = [", ".join(image.tags), image.platform or "", human_bytes(sum(image.sizes().values())), str(image.digest)]
    branch = parent.add(plain("  ".join(word for word in words if word), "green" if image.tags else ""))
    if image.problem:
        branch.add(plain(image.problem, "red"))
    for part in image.parts:
        size = "missing" if part.size is None else human_bytes(part.size)
        branch.add(plain(f"{part.kind}  {size}  {part.digest}", "red" if part.size is None else "dim"))
    for child in image.children:
        _draw_image(branch, child)


COMMANDS: Final = (du_command, tree_command)
