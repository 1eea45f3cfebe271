"""The SOURCE of a command: the registry in it, opened and closed again, and what can be said of it to everybody.

Needs no FUSE: commands that only look at a storage use it as the daemon does.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import unquote, urlsplit

import trio

from layerfs.driver.interface import StorageDriver
from layerfs.driver.sources import open_driver
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
from layerfs.registry import Registry
from layerfs.registry.cache import DescriptorCache, open_cache

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


def local_path(source: str) -> str | None:
    """The directory that a source names, if it is on this machine."""
    if "://" not in source:
        return os.path.abspath(source)
    parts = urlsplit(source)
    return unquote(parts.path) if parts.scheme == "file" else None


def display_name(source: str) -> str:
    """The source as everybody may see it: no credentials, no query."""
    local = local_path(source)
    return local if local is not None else re.sub(r"(?<=://)[^/@]*@", "", source).partition("?")[0]


@asynccontextmanager
async def open_registry(
    source: str,
    *,
    verb: str,
    may_create: bool = False,
    create: bool = False,
    trust_hash_states: bool = False,
    cache: str = "none",
    metadata_ttl: float = 0.0,
) -> AsyncIterator[Registry]:
    """The registry in `source`, closed at the end.

    `verb` is what is to be done with it ("mount"), for messages; with `may_create` they also advise `--create`, which
    is `create`. `cache` is what `--cache` names; storage on this machine is asked all the same, which costs next to
    nothing, and other storage after `metadata_ttl` seconds. Raises `SourceUnusable`, `CacheUnusable`.
    """
    descriptors = open_cache(cache)
    is_local = local_path(source) is not None
    source = local_path(source) or source
    try:
        driver = await _find_storage(source, verb=verb, create=create)
    except LayerfsError as error:
        name = display_name(source)
        # What a driver says may quote the source as it was given, credentials and all.
        reason = str(error).replace(source, name)
        advice = _advice(source, error, verb=verb, may_create=may_create)
        raise SourceUnusable(f"cannot {verb} {name!r}: {reason}{advice}") from error
    try:
        yield Registry(
            driver,
            trust_hash_states=trust_hash_states,
            cache=descriptors,
            believe_for=0.0 if is_local else metadata_ttl,
        )
    finally:
        await _close(driver, descriptors)


def _advice(source: str, error: LayerfsError, *, verb: str, may_create: bool) -> str:
    match error:
        case InsideStorage():
            return ""
        case NotARegistry():
            return ", or use --create to begin an empty registry here" if may_create else ""
        case PathNotFound() if os.path.exists(source):
            return ". It is not a directory: name the root directory of a registry's storage"
        case PathNotFound():
            return ". Check the name" + (", or begin an empty registry there with --create" if may_create else "")
        case AccessDenied():
            return f". {verb.capitalize()} as a user who may use it, such as the one that the registry runs as"
        case _:
            return ""


async def _find_storage(source: str, *, verb: str, create: bool) -> StorageDriver:
    """The driver of `source`, where there is a registry.

    Raises `NotARegistry`, with the right source if this one lies inside a storage.
    """
    try:
        return await _open(source, create=False)
    except (NotARegistry, PathNotFound):
        storage = await _storage_around(source)
        if storage is not None:
            right = display_name(storage)
            raise InsideStorage(f"it is a folder inside a registry's storage; {verb} {right!r}") from None
        if not create:
            raise
    return await _open(source, create=True)


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


async def _open(source: str, *, create: bool) -> StorageDriver:
    driver = open_driver(source, create=create)
    try:
        await Registry.open(driver, create=create)
    except BaseException:
        await _close(driver)
        raise
    return driver


async def _close(driver: StorageDriver, cache: DescriptorCache | None = None) -> None:
    with trio.move_on_after(CLOSE_SECONDS, shield=True):
        if cache is not None:
            await cache.close()
        await driver.close()
