"""`Registry` and `Repository`: the way into everything that is stored, and the catalog of it.

    driver = open_driver("/var/lib/registry")
    registry = await Registry.open(driver)
    layer = await registry.repository("library/alpine").layers.fetch(Digest.parse("sha256:…"))
    content = await layer.read()

No mount, no daemon and no task of its own is needed; all of it runs in the caller's tasks.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import trio

from layerfs.driver.interface import Entry, StorageDriver
from layerfs.errors import (
    DriverError,
    LayerfsError,
    NotARegistry,
    NotRegularFile,
    PathNotEmpty,
    PathNotFound,
    RepositoryNotEmpty,
    RepositoryUnknown,
)
from layerfs.manifest import NO_URLS, UrlRules
from layerfs.names import (
    REPOSITORY_NAME_LENGTH,
    check_repository_name,
    check_stored_repository_name,
    is_stored_component,
)
from layerfs.registry.blobs import BlobStore
from layerfs.registry.cache import DescriptorCache
from layerfs.registry.content_cache import ContentCache
from layerfs.registry.layers import LayerService
from layerfs.registry.manifests import ManifestService
from layerfs.registry.media_types import MediaTypes
from layerfs.registry.paths import BEGUN, BLOBS, LAYERS, MANIFESTS, REPOSITORIES, ROOT, UPLOADS, RepositoryDirectory
from layerfs.registry.repositories import make_repository
from layerfs.registry.revisions import Revisions
from layerfs.registry.side_by_side import at_once_on, side_by_side
from layerfs.registry.tags import TagService
from layerfs.registry.uploads import UploadStore


@dataclass(frozen=True, slots=True)
class Listing:
    """What a directory of repository names holds: whether it is a repository itself, and the next components."""

    is_repository: bool
    components: tuple[str, ...]


class Repository:
    """One repository by name; it need not exist yet."""

    def __init__(
        self, name: str, layers: LayerService, manifests: ManifestService, tags: TagService, *, at_once: int = 1
    ) -> None:
        self.name = name
        #: How many layers or manifests of it are to be looked at at a time.
        self.at_once = at_once
        self.layers = layers
        self.manifests = manifests
        self.tags = tags


class Registry:
    """The registry in a storage."""

    def __init__(
        self,
        driver: StorageDriver,
        *,
        trust_hash_states: bool = False,
        urls: UrlRules = NO_URLS,
        cache: DescriptorCache | None = None,
        believe_for: float = 0.0,
        content: ContentCache | None = None,
    ) -> None:
        """`cache` and `believe_for` (seconds) are as in `BlobStore`; the caches are the caller's to close.

        `content` is where whoever reads many blobs may keep them; nothing here does.
        """
        self.driver = driver
        self.content = content
        self.blobs = BlobStore(driver, cache, believe_for=believe_for)
        self._urls = urls
        self._limiter = trio.CapacityLimiter(1)
        self._media_types = MediaTypes()
        self.uploads = UploadStore(driver, self.blobs, trust_hash_states=trust_hash_states)

    @classmethod
    async def open(
        cls,
        driver: StorageDriver,
        *,
        create: bool = False,
        trust_hash_states: bool = False,
        urls: UrlRules = NO_URLS,
    ) -> Self:
        """The registry in `driver`; with `create` an empty one is made where there is none.

        `trust_hash_states` believes the hash states that registries and other nodes have stored, so that finishing
        what they began reads nothing again; a wrong state then leads to a blob that does not match its digest.
        `urls` are those that the layers of a manifest may have.
        Raises `NotARegistry`.
        """
        try:
            await driver.stat(ROOT)
        except PathNotFound:
            if not create:
                raise NotARegistry(
                    f"no registry storage: it has no {ROOT[1:]!r}. Name the root directory that the registry is "
                    "configured with"
                ) from None
            await driver.make_directory(REPOSITORIES)
            await driver.make_directory(BLOBS)
        return cls(driver, trust_hash_states=trust_hash_states, urls=urls)

    async def begin(self) -> None:
        """Leaves something by which whoever opens the registry next finds it, though it is empty."""
        if not self.driver.capabilities.directories:
            await self.driver.put_content(BEGUN, b"")

    def repository(self, name: str) -> Repository:
        """Raises `InvalidRepositoryName` only for what no registry stores; creating is stricter."""
        check_stored_repository_name(name)
        revisions = Revisions(name, self.driver, self.blobs)
        tags = TagService(name, self.driver, revisions)
        manifests = ManifestService(
            name,
            self.driver,
            self.blobs,
            tags,
            revisions,
            self._media_types,
            limiter=self._limiter,
            urls=self._urls,
        )
        layers = LayerService(name, self.driver, self.blobs, self.uploads)
        return Repository(name, layers, manifests, tags, at_once=at_once_on(self.driver))

    async def has_directory(self, name: str) -> bool:
        """Whether `name` is a repository or the beginning of one's name; even without any, where directories exist."""
        return await self.driver.is_directory(RepositoryDirectory(name).path)

    async def list(self, name: str) -> Listing:
        """What is directly below a repository or the beginning of repository names; "" is the top.

        One request. Raises `RepositoryUnknown`.
        """
        try:
            entries = await self.driver.list(RepositoryDirectory(name).path)
        except (PathNotFound, NotRegularFile) as error:
            if not name:
                return Listing(is_repository=False, components=())
            raise RepositoryUnknown(name) from error
        return _listing(entries)

    async def catalog(
        self, *, last: str = "", on_error: Callable[[str, DriverError], None] | None = None
    ) -> AsyncIterator[str]:
        """The names of all repositories, in the order of a registry's catalog: by component. Those after `last` only.

        Never enters a repository's own directories or the blob store. A name that cannot be looked at is told to
        `on_error`, and passed over; without that, the error is raised.
        """
        after = tuple(last.split("/")) if last else ()
        waiting = [""]
        listed: dict[str, Listing | RepositoryUnknown | DriverError] = {}
        while waiting:
            if waiting[-1] not in listed:
                # Many at a time where each takes a while: with those that will be asked for next.
                names = _next_names(waiting, listed, after, at_once_on(self.driver))
                found = await side_by_side(self._list_or_error, names, at_once=len(names))
                listed.update(zip(names, found, strict=True))
            name = waiting.pop()
            listing = listed.pop(name)
            if isinstance(listing, DriverError):
                if on_error is None:
                    raise listing
                on_error(name, listing)
            elif isinstance(listing, Listing):
                if name and listing.is_repository and tuple(name.split("/")) > after:
                    yield name
                waiting.extend(reversed(_names_below(name, listing, after)))

    async def _list_or_error(self, name: str) -> Listing | RepositoryUnknown | DriverError:
        try:
            return await self.list(name)
        except (RepositoryUnknown, DriverError) as error:
            return error

    async def create_repository(self, name: str) -> None:
        """Makes an empty repository, known to registries of both generations. Raises `InvalidRepositoryName`."""
        check_repository_name(name)
        try:
            await make_repository(self.driver, name)
        except LayerfsError:
            # Half a repository could not be completed by making it again: it exists.
            with contextlib.suppress(LayerfsError):
                await self._remove_empty(name)
            raise

    async def remove_repository(self, name: str) -> None:
        """Removes a repository, or beginning of names, that holds nothing.

        Raises `RepositoryNotEmpty`, and changes nothing. What registries leave of cancelled uploads is nothing; a link
        that leads nowhere is something, because it may be the storage of blobs that is not there.
        """
        listing = await self.list(name)
        if listing.components:
            raise RepositoryNotEmpty(name, f"repository {name}/{listing.components[0]}")
        if await self.repository(name).layers.upload_names():
            raise RepositoryNotEmpty(name, "uploads")
        directory = RepositoryDirectory(name)
        for entry in await self.driver.list(directory.path):
            path = f"{directory.path}/{entry.name}"
            if path != directory.uploads and (not entry.is_directory or await self._has_files(path)):
                raise RepositoryNotEmpty(name, f"files in {entry.name!r}")
        await self._remove_empty(name)

    async def demote_repository(self, name: str) -> None:
        """Makes a repository without anything in it a mere beginning of names again, if it still is that."""
        directory = RepositoryDirectory(name)
        with contextlib.suppress(PathNotFound):
            if any(entry.name == UPLOADS for entry in await self.driver.list(directory.path)):
                return
        await self._remove_directories_together(name, (directory.layers, directory.manifests))

    async def _remove_empty(self, name: str) -> None:
        directory = RepositoryDirectory(name)
        with contextlib.suppress(PathNotFound, NotRegularFile):
            await self.uploads.remove_ghosts(name)
        if not await self._remove_directories_together(
            name, (directory.uploads, directory.layers, directory.manifests)
        ):
            raise RepositoryNotEmpty(name, "something that is not shown")
        try:
            await self._remove_directories(directory.path)
        except PathNotEmpty as error:
            raise RepositoryNotEmpty(name, "something that was just put there") from error

    async def _remove_directories_together(self, name: str, paths: Sequence[str]) -> bool:
        """Removes trees of empty directories, and whether that worked; if not, the repository is whole again.

        One that has only `_layers`, or only `_manifests`, loses its blobs to the garbage collection of a registry of
        the other generation.
        """
        for path in paths:
            if await self._has_files(path):
                return False
        try:
            for path in paths:
                await self._remove_directories(path)
        except PathNotEmpty:
            # Somebody was faster than we were.
            await make_repository(self.driver, name)
            return False
        return True

    async def _has_files(self, path: str) -> bool:
        try:
            entries = await self.driver.list(path)
        except PathNotFound:
            return False
        except NotRegularFile:
            return True
        for entry in entries:
            if not entry.is_directory or await self._has_files(f"{path}/{entry.name}"):
                return True
        return False

    async def _remove_directories(self, path: str) -> None:
        """Removes a tree of empty directories; `PathNotEmpty` stops it where somebody has just put something."""
        try:
            for entry in await self.driver.list(path):
                if entry.is_directory:
                    await self._remove_directories(f"{path}/{entry.name}")
            await self.driver.remove_directory(path)
        except PathNotFound:
            return


def _listing(entries: list[Entry]) -> Listing:
    directories = {entry.name for entry in entries if entry.is_directory}
    return Listing(
        is_repository=not directories.isdisjoint((LAYERS, MANIFESTS, UPLOADS)),
        components=tuple(sorted(name for name in directories if is_stored_component(name))),
    )


def _names_below(name: str, listing: Listing, after: tuple[str, ...]) -> list[str]:
    """Those that a walk of the catalog goes on with, in order."""
    below = [f"{name}/{component}" if name else component for component in listing.components]
    # No longer ones, which no registry makes: somebody's maze would take us beyond what the system can open.
    return [child for child in below if len(child) <= REPOSITORY_NAME_LENGTH and _may_hold_later(child, after)]


def _next_names(waiting: Sequence[str], listed: Mapping[str, object], after: tuple[str, ...], count: int) -> list[str]:
    """The first `count` names that a walk will have to list, as far as can be known; its next is last in `waiting`."""
    names: list[str] = []
    for first in reversed(waiting):
        below = [first]
        while below and len(names) < count:
            name = below.pop()
            listing = listed.get(name)
            if listing is None:
                names.append(name)
            elif isinstance(listing, Listing):
                below.extend(reversed(_names_below(name, listing, after)))
        if len(names) == count:
            break
    return names


def _may_hold_later(name: str, after: tuple[str, ...]) -> bool:
    """Whether `name`, or one that begins with it, can come after `after`."""
    components = tuple(name.split("/"))
    return components >= after[: len(components)]
