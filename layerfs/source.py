"""The SOURCE of a command: the registry in it, opened and closed again, and what can be said of it to everybody.

It is a path or URL, or a registry's own configuration (`--config`).

Needs no FUSE: commands that only look at a storage use it as the daemon does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

import trio

from layerfs.driver.archive import ArchiveDriver
from layerfs.driver.chains import ArchiveSource, is_chained, parse_archive
from layerfs.driver.interface import StorageDriver
from layerfs.driver.metered import MeteredDriver
from layerfs.driver.sources import LOCAL_SCHEMES, Storage, open_driver
from layerfs.errors import (
    AccessDenied,
    InvalidName,
    LayerfsError,
    NotARegistry,
    NotRegularFile,
    PathNotFound,
    StorageReadOnly,
    UnknownSource,
    UnsupportedByDriver,
)
from layerfs.manifest import NO_URLS
from layerfs.registry import Registry
from layerfs.registry.cache import DescriptorCache, open_cache
from layerfs.registry.content_cache import ContentCache
from layerfs.registry.paths import ROOT
from layerfs.registry_config import RegistryConfig

log = logging.getLogger(__name__)

Source: TypeAlias = str | RegistryConfig

#: Seconds for letting go of a storage, whatever it does.
CLOSE_SECONDS: Final = 5.0

#: What the person who typed the command can put right.
USER_ERRORS: Final = (
    AccessDenied,
    InvalidName,
    NotARegistry,
    NotRegularFile,
    PathNotFound,
    StorageReadOnly,
    UnknownSource,
    UnsupportedByDriver,
)

#: In the names of parameters that hold credentials; the one of a file with them is no secret.
_CREDENTIALS: Final = "key|secret|token|password|credential(?!s_file$)"

#: A source that ends in a part of the layout inside a storage.
_INSIDE_STORAGE: Final = re.compile(r"(?P<root>.*)/docker(/registry(/v2(/.*)?)?)?/*", re.DOTALL)


class InsideStorage(NotARegistry):
    """The source is a folder inside a registry's storage."""


class SourceUnusable(LayerfsError):
    """The source cannot be used; the cause is the driver's or registry's error."""

    @property
    def is_user_error(self) -> bool:
        """Whether whoever typed the source can put it right."""
        return isinstance(self.__cause__, USER_ERRORS)


def local_path(source: Source) -> str | None:
    """The directory that a source names, if it is on this machine."""
    if isinstance(source, RegistryConfig):
        return source.storage if isinstance(source.storage, str) else None
    if is_chained(source):
        return None
    if "://" not in source:
        return os.path.abspath(source)
    if source.partition("://")[0].lower() not in LOCAL_SCHEMES:
        return None
    with contextlib.suppress(ValueError):
        return unquote(urlsplit(source).path)
    return None


def _archive(source: Source) -> ArchiveSource | None:
    """The archive that a source names; None also where it is not to be used, which is said when it is opened."""
    with contextlib.suppress(UnknownSource):
        return parse_archive(source) if isinstance(source, str) else None
    return None


def display_name(source: Source) -> str:
    """The source as everybody may see it: no credentials, no query."""
    if isinstance(source, RegistryConfig):
        return source.name
    archive = _archive(source)
    if archive is not None:
        return replace(archive, target=display_name(archive.target)).source
    local = local_path(source)
    if local is not None:
        return local
    # What stands before the @ is a container there.
    is_of_azure = re.match("(?:abfs|wasb)s?://[^/:@]*@", source) is not None
    return (source if is_of_azure else re.sub(r"(?<=://)[^/@]*@", "", source)).partition("?")[0]


@asynccontextmanager
async def open_registry(
    source: Source,
    *,
    verb: str,
    may_create: bool = False,
    create: bool = False,
    trust_hash_states: bool = False,
    cache: str = "none",
    metadata_ttl: float = 0.0,
    cache_dir: str | None = None,
    cache_size: int = 0,
) -> AsyncIterator[Registry]:
    """The registry in `source`, closed at the end.

    `verb` is what is to be done with it ("mount"), for messages; with `may_create` they also advise `--create`, which
    is `create`. `cache` is what `--cache` names; storage on this machine is asked all the same, which costs next to
    nothing, and other storage after `metadata_ttl` seconds. `cache_dir` is where content may be kept, at most
    `cache_size` bytes of it. Raises `SourceUnusable`, `CacheUnusable`.
    """
    descriptors = open_cache(cache)
    content = ContentCache(cache_dir, cache_size) if cache_dir is not None else None
    configured = source if isinstance(source, RegistryConfig) else None
    for warning in configured.warnings if configured else ():
        log.warning("%s", warning)
    storage = _storage_of(source)
    try:
        driver = await _find_storage(storage, verb=verb, create=create)
    except LayerfsError as error:
        reason = _without_secrets(str(error), source)
        advice = _advice(source, error, verb=verb, may_create=may_create)
        raise SourceUnusable(f"cannot {verb} {_long_name(source)}: {reason}{advice}") from error
    try:
        yield Registry(
            MeteredDriver(driver),
            urls=configured.urls if configured else NO_URLS,
            trust_hash_states=trust_hash_states,
            cache=descriptors,
            believe_for=0.0 if local_path(source) is not None else metadata_ttl,
            content=content,
        )
    finally:
        await _close(driver, descriptors, content)


def _storage_of(source: Source) -> Storage:
    return source.storage if isinstance(source, RegistryConfig) else local_path(source) or source


def _long_name(source: Source) -> str:
    """The source, and where it comes from, in a message."""
    configured = f", which {source.file!r} configures" if isinstance(source, RegistryConfig) else ""
    return f"{display_name(source)!r}{configured}"


def _without_secrets(text: str, source: Source) -> str:
    """What a driver says may quote the source as it was given, credentials and all."""
    return text.replace(source, display_name(source)) if isinstance(source, str) and "://" in source else text


def _advice(source: Source, error: LayerfsError, *, verb: str, may_create: bool) -> str:
    match error:
        case InsideStorage():
            return ""
        case PathNotFound() if _archive(source) is not None:
            return ". Check the name"
        case NotARegistry():
            empty = " It may also be that nothing was ever pushed there" if isinstance(source, RegistryConfig) else ""
            begin = ", or use --create to begin an empty registry here" if may_create else ""
            return f".{empty}{begin}" if empty else begin
        case PathNotFound() if (kind := _kind_of_file(local_path(source))) is not None:
            return f". It is a file. If it is a backup of a registry's storage, {verb} '{kind}::{local_path(source)}'"
        case PathNotFound() if os.path.exists(local_path(source) or ""):
            return ". It is not a directory: name the root directory of a registry's storage"
        case PathNotFound():
            return ". Check the name" + (", or begin an empty registry there with --create" if may_create else "")
        case AccessDenied() if not _is_on_this_machine(source):
            return ". Check the credentials, and what they permit"
        case AccessDenied():
            return f". {verb.capitalize()} as a user who may use it, such as the one that the registry runs as"
        case _:
            return ""


def _is_on_this_machine(source: Source) -> bool:
    archive = _archive(source)
    return local_path(source if archive is None else archive.target) is not None


#: How files are called that may be backups, by what their source is to be written with.
_ARCHIVE_NAMES: Final = {"zip": (".zip",), "tar": (".tar", ".tar.gz", ".tgz")}


def _kind_of_file(path: str | None) -> str | None:
    """The kind of archive that the file at `path` seems to be, by its name."""
    if path is None or not os.path.isfile(path):
        return None
    return next((kind for kind, endings in _ARCHIVE_NAMES.items() if path.lower().endswith(endings)), None)


async def _find_storage(source: Storage, *, verb: str, create: bool) -> StorageDriver:
    """The driver of `source`, where there is a registry.

    Raises `NotARegistry`, with the right source if this one lies inside a storage.
    """
    if isinstance(source, str):
        _check_no_credentials(source)
    try:
        return await _open(source, create=False)
    except (NotARegistry, PathNotFound):
        storage = await _storage_around(source) if isinstance(source, str) else None
        if storage is not None:
            right = display_name(storage)
            raise InsideStorage(f"it is a folder inside a registry's storage; {verb} {right!r}") from None
        if not create:
            raise
    return await _open(source, create=True)


def _check_no_credentials(source: str) -> None:
    """Raises `UnknownSource` for a URL with a secret in it, whichever driver it is for.

    A name alone before the `@` is none: SFTP has it.
    """
    archive = parse_archive(source)
    if archive is not None:
        source = archive.target
    if "://" not in source:
        return
    try:
        parts = urlsplit(source)
    except ValueError as error:
        raise UnknownSource(display_name(source), f"it is no URL: {error}") from error
    words = [name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if ":" in parts.netloc.rpartition("@")[0] or any(re.search(_CREDENTIALS, word) for word in words):
        raise UnknownSource(
            display_name(source),
            "credentials in a URL are seen by everybody who lists processes: put them into the environment or the "
            "files where the client library of this storage looks for them, or use --config",
        )


async def _storage_around(source: str) -> str | None:
    match = _INSIDE_STORAGE.fullmatch(source)
    if match is None:
        return None
    storage = match["root"] or "/"
    try:
        driver = await _open(storage, create=False)
    except LayerfsError:
        return None
    await _close(driver)
    return storage


async def _open(source: Storage, *, create: bool) -> StorageDriver:
    driver = open_driver(source, create=create)
    try:
        await _check_root_of_archive(driver, source)
        registry = await Registry.open(driver, create=create)
        if create:
            await registry.begin()
    except BaseException:
        await _close(driver)
        raise
    return driver


async def _check_root_of_archive(driver: StorageDriver, source: Storage) -> None:
    """Raises `InsideStorage`, with the right source, if the storage lies elsewhere in an archive."""
    archive = _archive(source) if isinstance(source, str) else None
    if not isinstance(driver, ArchiveDriver) or archive is None or await driver.is_directory(ROOT):
        return
    roots = await driver.directories_above(ROOT)
    if roots:
        found = " or ".join(repr(display_name(replace(archive, inside=root).source)) for root in roots[:3])
        raise InsideStorage(f"the archive has a registry's storage elsewhere: name {found}")


async def _close(driver: StorageDriver, *caches: DescriptorCache | ContentCache | None) -> None:
    with trio.move_on_after(CLOSE_SECONDS, shield=True):
        for cache in caches:
            if cache is not None:
                await cache.close()
        await driver.close()
