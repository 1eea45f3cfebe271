"""The commands that look into a storage without mounting it: `ls`, `cat`, `inspect`.

What they print comes from storage, which anybody may have written: every text is escaped before it is shown, and
only `cat`, `--raw` and `--config` give bytes as they are, to anything but a terminal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from layerfs.command import (
    Fields,
    Output,
    SourceCommand,
    run_reading,
    source_argument,
)
from layerfs.exits import ExitCode

if TYPE_CHECKING:
    from layerfs.layername import LayerName
    from layerfs.reading import Image, ListedManifest, Part
    from layerfs.reference import Reference
    from layerfs.registry import Registry, Repository
    from layerfs.source import Source

_EXIT_CODES: Final = """\b
Exit codes:
  0   success
  1   the arguments or the source cannot be used, or what they name is not there
  4   internal error: please report it, with the log
  8   ended by a signal
  32  the storage is damaged or out of reach, or the output cannot be written
"""


def _reference(_context: click.Context, _parameter: click.Parameter, text: str | None) -> Reference | None:
    from layerfs.reference import InvalidReference, Reference

    if text is None:
        return None
    try:
        return Reference.parse(text)
    except InvalidReference as error:
        raise click.UsageError(str(error)) from None


_IMAGE = click.argument("reference", metavar="REPO:TAG|REPO@DIGEST", callback=_reference)
_FORMAT = click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json"]),
    default="table",
    help="A table for people, or one JSON object a line [default: table].",
)


# --- ls ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _ListOptions:
    as_json: bool
    long: bool
    everything: bool
    layers: bool
    uploads: bool


@click.command("ls", cls=SourceCommand, epilog=_EXIT_CODES)
@source_argument()
@click.argument("reference", metavar="[REPO[:TAG|@DIGEST]]", required=False, callback=_reference)
@click.option("-l", "--long", is_flag=True, help="Of repositories: how many tags, layers and uploads each has.")
@click.option("-a", "--all", "everything", is_flag=True, help="Of a repository: manifests without a tag as well.")
@click.option("--layers", is_flag=True, help="Of a repository: its layers.")
@click.option("--uploads", is_flag=True, help="Of a repository: its unfinished uploads.")
@_FORMAT
def ls_command(source: Source, reference: Reference | None, output_format: str, **given: bool) -> int:
    """Lists the repositories in SOURCE, what a repository has, or what a manifest refers to.

    SOURCE is what `layerfs mount` takes. Nothing is mounted, and nothing is changed.
    """
    options = _ListOptions(as_json=output_format == "json", **given)
    _check_list_options(reference, options)

    async def work(registry: Registry, output: Output) -> int:
        from layerfs import reading

        if reference is None:
            await _list_repositories(registry, output, options)
            return ExitCode.OK
        repository = await reading.find_repository(registry, reference.repository)
        if not reference.is_repository:
            await _list_parts(repository, reference, output, options)
        elif options.layers:
            await _list_layers(repository, output, options)
        elif options.uploads:
            await _list_uploads(repository, output, options)
        else:
            _show_manifests(await reading.list_manifests(repository, untagged=options.everything), output, options)
        return ExitCode.OK

    return run_reading(source, work)


def _check_list_options(reference: Reference | None, options: _ListOptions) -> None:
    if options.long and reference is not None:
        raise click.UsageError("--long is for a list of repositories")
    kinds = [options.everything, options.layers, options.uploads]
    if any(kinds) and (reference is None or not reference.is_repository):
        raise click.UsageError("--all, --layers and --uploads are for a repository")
    if sum(kinds) > 1:
        raise click.UsageError("use one of --all, --layers and --uploads")


async def _list_repositories(registry: Registry, output: Output, options: _ListOptions) -> None:
    from layerfs import reading

    rows = []
    async for name in registry.catalog():
        if not options.long:
            output.json({"repository": name}) if options.as_json else output.line(name)
            continue
        found = await reading.summarize(registry, name)
        if options.as_json:
            numbers = {"tags": found.tags, "layers": found.layers, "uploads": found.uploads}
            output.json({"repository": name} | numbers)
        else:
            rows.append((name, str(found.tags), str(found.layers), str(found.uploads)))
    if options.long and not options.as_json:
        output.table(("REPOSITORY", "TAGS", "LAYERS", "UPLOADS"), rows)


def _show_manifests(manifests: Sequence[ListedManifest], output: Output, options: _ListOptions) -> None:
    if options.as_json:
        for each in manifests:
            output.json(_manifest_fields(each))
        return
    rows = []
    for each in manifests:
        found = each.descriptor
        kind, size = (found.media_type, str(found.size)) if found else ("missing", "-")
        rows.append((each.tag or "-", str(each.digest), size, kind))
    output.table(("TAG", "DIGEST", "SIZE", "MEDIA TYPE"), rows)


def _manifest_fields(listed: ListedManifest) -> Fields:
    found = listed.descriptor
    return {
        "tag": listed.tag,
        "digest": str(listed.digest),
        "mediaType": found.media_type if found else None,
        "size": found.size if found else None,
    }


async def _list_layers(repository: Repository, output: Output, options: _ListOptions) -> None:
    layers = await repository.layers.list()
    if options.as_json:
        for layer in layers:
            output.json({"digest": str(layer.digest), "size": layer.blob.size})
        return
    output.table(("DIGEST", "SIZE"), [(str(layer.digest), str(layer.blob.size)) for layer in layers])


async def _list_uploads(repository: Repository, output: Output, options: _ListOptions) -> None:
    rows = []
    for upload in await repository.layers.uploads():
        started_at = upload.started_at.strftime("%Y-%m-%dT%H:%M:%SZ") if upload.started_at else None
        if options.as_json:
            fields = {"name": upload.file_name, "uuid": upload.uuid, "size": upload.size, "startedAt": started_at}
            output.json(fields)
        rows.append((upload.file_name, upload.uuid, str(upload.size), started_at or "-"))
    if not options.as_json:
        output.table(("NAME", "UUID", "SIZE", "STARTED"), rows)


async def _list_parts(repository: Repository, reference: Reference, output: Output, options: _ListOptions) -> None:
    from layerfs import reading

    manifest = await reading.find_manifest(repository, await reading.find_name(repository, reference))
    parts = await reading.list_parts(repository, manifest)
    if options.as_json:
        for part in parts:
            output.json({"kind": part.kind} | _part_fields(part))
        return
    _show_parts(parts, output)


def _show_parts(parts: Sequence[Part], output: Output) -> None:
    heads = ["KIND", "DIGEST", "SIZE", "STORED", "PLATFORM", "MEDIA TYPE"]
    rows = [
        [part.kind, str(part.digest), _number(part.size), _stored(part), part.platform or "-", part.media_type or "-"]
        for part in parts
    ]
    if not any(part.platform for part in parts):
        for row in (heads, *rows):
            del row[4]
    output.table(heads, rows)


def _stored(part: Part) -> str:
    if part.stored_size is None:
        return "missing"
    return "yes" if part.size in (None, part.stored_size) else f"{part.stored_size} bytes"


def _number(size: int | None) -> str:
    return "-" if size is None else str(size)


def _part_fields(part: Part) -> Fields:
    fields: Fields = {
        "digest": str(part.digest),
        "mediaType": part.media_type or None,
        "size": part.size,
        "stored": part.stored_size is not None,
        "storedSize": part.stored_size,
    }
    return fields | ({"platform": part.platform} if part.kind == "manifest" else {})


# --- cat ---------------------------------------------------------------------------------------------------------


@click.command("cat", cls=SourceCommand, epilog=_EXIT_CODES)
@source_argument()
@_IMAGE
def cat_command(source: Source, reference: Reference) -> int:
    """Writes a manifest or a layer to standard output, exactly as it is stored.

    The bytes are compared with their digest while they are written. If they do not match, that is known only when all
    of them are out: then the exit code is 32, and whatever was made of them should be thrown away.
    """

    async def work(registry: Registry, output: Output) -> int:
        from layerfs import reading

        repository = await reading.find_repository(registry, reference.repository)
        name = await reading.find_name(repository, reference)
        if output.is_terminal and await reading.is_layer(repository, name):
            raise reading.NotForTerminals("a layer is not for a terminal: send it to a file or another command")
        await _copy(repository, name, output)
        return ExitCode.OK

    return run_reading(source, work)


async def _copy(repository: Repository, name: LayerName, output: Output) -> None:
    from contextlib import aclosing

    from layerfs import reading

    try:
        async with aclosing(reading.stream(repository, name)) as chunks:
            async for chunk in chunks:
                output.content(chunk)
    except reading.ContentDamaged as error:
        raise reading.WrittenDamaged(f"{error}; they were written to standard output: do not use them") from error


# --- inspect -----------------------------------------------------------------------------------------------------


@click.command("inspect", cls=SourceCommand, epilog=_EXIT_CODES)
@source_argument("--registry-config")  # `--config` is the image's, as it is to skopeo
@_IMAGE
@click.option("--raw", is_flag=True, help="The manifest itself, exactly as it is stored.")
@click.option("--config", is_flag=True, help="The configuration of the image, exactly as it is stored.")
@_FORMAT
def inspect_command(source: Source, reference: Reference, raw: bool, config: bool, output_format: str) -> int:
    """Shows what a manifest, and the configuration of its image, say."""
    if raw and config:
        raise click.UsageError("use one of --raw and --config")

    async def work(registry: Registry, output: Output) -> int:
        from layerfs import reading

        repository = await reading.find_repository(registry, reference.repository)
        manifest = await reading.find_manifest(repository, await reading.find_name(repository, reference))
        if raw or config:
            output.content(await reading.read_config(repository, manifest) if config else manifest.content)
            return ExitCode.OK
        image = await reading.describe(repository, manifest)
        if output_format == "json":
            output.json(_image_fields(image), indent=2)
        else:
            _show_image(image, output)
        return ExitCode.OK

    return run_reading(source, work)


def _image_fields(image: Image) -> Fields:
    manifest = image.manifest
    fields: Fields = {
        "name": image.repository,
        "digest": str(manifest.digest),
        "mediaType": manifest.media_type,
        "size": manifest.size,
        "tags": list(image.tags),
        "totalSize": image.total_size,
    }
    if image.is_index:
        return fields | {"manifests": [_part_fields(part) for part in image.parts]}
    return fields | {
        "platform": image.platform,
        "created": image.created,
        "entrypoint": list(image.entrypoint),
        "cmd": list(image.command),
        "env": list(image.environment),
        "labels": image.labels,
        "config": next((_part_fields(part) for part in image.parts if part.kind == "config"), None),
        "layers": [_part_fields(part) for part in image.parts if part.kind == "layer"],
    }


def _show_image(image: Image, output: Output) -> None:
    manifest = image.manifest
    facts = [
        ("Name", image.repository),
        ("Digest", str(manifest.digest)),
        ("Media type", manifest.media_type),
        ("Tags", ", ".join(image.tags) or "-"),
        ("Platform", image.platform),
        ("Created", image.created),
        ("Entrypoint", _words(image.entrypoint)),
        ("Command", _words(image.command)),
        *(("Environment", each) for each in image.environment),
        *(("Label", f"{name}={text}") for name, text in image.labels.items()),
        ("Total size", _size(image.total_size)),
    ]
    for name, text in facts:
        if text:
            output.line(f"{name + ':':<13}{text}")
    output.line("")
    _show_parts(image.parts, output)


def _words(arguments: Sequence[str]) -> str:
    return json.dumps(list(arguments), ensure_ascii=False) if arguments else ""


def _size(size: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size} bytes ({size / unit:.1f} {name})"
    return f"{size} bytes"


COMMANDS: Final = (ls_command, cat_command, inspect_command)
