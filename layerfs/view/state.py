"""What the nodes of one mount share: the registry, the options, and what is remembered between calls."""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

import trio

from layerfs.digest import Digest
from layerfs.errors import LayerfsError, ReadOnlyMount
from layerfs.oci import IndexEntry
from layerfs.registry import LayerService, Registry
from layerfs.registry.manifests import ManifestInfo, ManifestService
from layerfs.registry.tags import TagService
from layerfs.view.contents import Contents
from layerfs.view.measurements import CacheFigures
from layerfs.view.nodes import DirectoryEntry, Node
from layerfs.view.readahead import PartPool
from layerfs.view.stats import MountStats
from layerfs.view.upload_listings import UploadListings

_log = logging.getLogger(__name__)

_Value = TypeVar("_Value")

#: Listings kept for the time to live, and entries in all of them together.
_LISTINGS_KEPT: Final = 64
_LISTED_ENTRIES_KEPT: Final = 200_000

#: Single tags that are remembered for the time to live.
_TAGS_KEPT: Final = 1024


@dataclass(frozen=True, slots=True)
class TreeOptions:
    """How a registry is shown. `metadata_ttl` is in seconds; `max_handles` and `max_uploads` count open ones."""

    read_only: bool = False
    allow_delete: bool = False
    uid: int = 0
    gid: int = 0
    umask: int = 0
    metadata_ttl: float = 1.0
    max_handles: int = 4096
    max_uploads: int = 256
    #: Only bytes are given out that were compared with their digest, which needs the registry's content cache.
    verify_reads: bool = False


class ExpiringListings(Generic[_Value]):
    """The newest listings by repository name, each for `ttl` seconds; bounded in number and in entries."""

    def __init__(self, ttl: float) -> None:
        self.hits = 0
        self.misses = 0
        self._ttl = ttl
        self._kept: OrderedDict[str, tuple[float, Sequence[_Value]]] = OrderedDict()
        # When a name was forgotten; and until when any name may have been that is not among these.
        self._forgotten: OrderedDict[str, float] = OrderedDict()
        self._forgotten_before = -math.inf
        # What the listing that was last looked into lists, by name.
        self._indexed: Sequence[_Value] = ()
        self._index: dict[str, Node] = {}

    def get(self, name: str) -> Sequence[_Value] | None:
        """The listing, if it is fresh."""
        kept = self._kept.get(name)
        if kept is None or time.monotonic() >= kept[0]:
            self.misses += 1
            return None
        self.hits += 1
        return kept[1]

    def left(self, name: str) -> float:
        """Seconds for which the listing stays fresh; 0 if it is not."""
        kept = self._kept.get(name)
        return max(0.0, kept[0] - time.monotonic()) if kept is not None else 0.0

    def put(self, name: str, began_at: float, listing: Sequence[_Value]) -> None:
        """Keeps a listing that was begun at `began_at` (monotonic): changes since then may be missing from it.

        If one of them is our own, it is not kept. Its time begins now, or one that takes long would be of no use.
        """
        if began_at <= self._forgotten.get(name, self._forgotten_before):
            return
        self._kept[name] = (time.monotonic() + self._ttl, listing)
        self._kept.move_to_end(name)
        while len(self._kept) > 1 and (len(self._kept) > _LISTINGS_KEPT or self._entries() > _LISTED_ENTRIES_KEPT):
            self._kept.popitem(last=False)

    def change_ttl(self, ttl: float) -> None:
        """From now on. What was kept for another time is forgotten."""
        self._ttl = ttl
        self._kept.clear()

    def find(self: ExpiringListings[DirectoryEntry], name: str, entry_name: str) -> Node | None:
        """What the listing has under a name, if it is fresh."""
        kept_until, listing = self._kept.get(name, (-math.inf, ()))
        return self._node(listing, entry_name) if time.monotonic() < kept_until else None

    def _node(self: ExpiringListings[DirectoryEntry], listing: Sequence[DirectoryEntry], name: str) -> Node | None:
        if listing is not self._indexed:
            self._indexed, self._index = listing, {entry.name.decode(): entry.node for entry in listing}
        return self._index.get(name)

    async def get_or_list(
        self: ExpiringListings[DirectoryEntry],
        name: str,
        list_entries: Callable[[], Awaitable[Sequence[DirectoryEntry]]],
    ) -> Sequence[DirectoryEntry]:
        """The listing while it is fresh, else what `list_entries` gives, which is kept."""
        entries = self.get(name)
        if entries is not None:
            # What they say counts since they were listed: the kernel may not believe it for as long again.
            left = self.left(name)
            return [entry.believable_for(left) for entry in entries]
        began_at = time.monotonic()
        entries = await list_entries()
        self.put(name, began_at, entries)
        return entries

    def forget_all(self) -> None:
        """After a change of our own that may show in any of them."""
        self._kept.clear()
        self._forgotten.clear()
        self._forgotten_before = time.monotonic()

    def forget(self, name: str) -> None:
        """After a change of our own, which must be seen at once."""
        self._kept.pop(name, None)
        self._forgotten[name] = time.monotonic()
        self._forgotten.move_to_end(name)
        if len(self._forgotten) > _LISTINGS_KEPT:
            self._forgotten_before = self._forgotten.popitem(last=False)[1]

    def _entries(self) -> int:
        return sum(len(listing) for _, listing in self._kept.values())


class TagListings(ExpiringListings[DirectoryEntry]):
    """Listings of `_tags`; and where it takes a request to ask for a tag, each as it was listed or looked up lately.

    Who lists tags looks at each of them next, and needs about as long as it took to list them at the most: as long a
    listing must hold when it is given out, or the rest of them would be asked for one by one. A tag on storage on this
    machine is asked for each time, which costs less than to be wrong.
    """

    def __init__(self, ttl: float, *, is_far: bool) -> None:
        super().__init__(ttl)
        self._is_far = is_far
        # Until when tags are found in the listings that are kept.
        self._found_until: dict[str, float] = {}
        # By repository and tag, the newest last, with when storage was asked.
        self._looked_up: OrderedDict[tuple[str, str], tuple[float, Node]] = OrderedDict()

    def put(self, name: str, began_at: float, listing: Sequence[DirectoryEntry]) -> None:
        """As of all listings. One that takes more than half of the time to live holds longer, by what it took."""
        super().put(name, began_at, listing)
        until, kept = self._kept.get(name, (0.0, None))
        if kept is not listing or not self._is_far or not self._ttl:
            return
        took = time.monotonic() - began_at
        is_quick = 2 * took <= self._ttl
        self._kept[name] = (until - took if is_quick else until, listing)
        self._found_until = {each: self._found_until.get(each, 0.0) for each in self._kept}
        self._found_until[name] = until if is_quick else until + took

    def find(self, name: str, tag: str) -> Node | None:
        """A tag as it was listed or looked up, if that is fresh and nothing was changed here since."""
        if not self._is_far:
            return None
        if name in self._kept and time.monotonic() < self._found_until.get(name, 0.0):
            found = self._node(self._kept[name][1], tag)
            if found is not None:
                return found
        asked_at, node = self._looked_up.get((name, tag), (-math.inf, None))
        return node if self._is_current(name, asked_at) else None

    def remember(self, name: str, tag: str, asked_at: float, node: Node) -> None:
        """What storage said of a tag when it was asked at `asked_at` (monotonic): the kernel asks twice for one."""
        self._looked_up[name, tag] = asked_at, node
        self._looked_up.move_to_end((name, tag))
        if len(self._looked_up) > _TAGS_KEPT:
            self._looked_up.popitem(last=False)

    def _is_current(self, name: str, asked_at: float) -> bool:
        return asked_at > self._forgotten.get(name, self._forgotten_before) and time.monotonic() < asked_at + self._ttl


class MountState:
    """The context of every node of a mount. `nursery` is for tasks that go on after the call that started them."""

    def __init__(self, registry: Registry, options: TreeOptions, nursery: trio.Nursery) -> None:
        self.registry = registry
        self.options = options
        self.mounted_at = time.time_ns()
        self.stats = MountStats()
        #: Repositories that were made by `mkdir` here, and may have nothing in them but uploads, which can be removed.
        self.fresh_repositories: set[str] = set()
        #: Whether storage is where each look at it is a request.
        self.is_far = registry.driver.capabilities.listed_files
        self.catalog_listings: ExpiringListings[DirectoryEntry] = ExpiringListings(options.metadata_ttl)
        self.layer_listings: ExpiringListings[DirectoryEntry] = ExpiringListings(options.metadata_ttl)
        self.upload_listings = UploadListings(options.metadata_ttl, self.service, is_far=self.is_far)
        self.read_ahead = PartPool(lambda task: self.start(task, "reading ahead"))
        self.contents: Contents | None = None
        if registry.content is not None:
            self.contents = Contents(
                registry.content,
                registry.blobs,
                self.read_ahead,
                lambda task: self.start(task, "filling the cache"),
                verify=options.verify_reads,
            )
        self.manifest_listings: ExpiringListings[DirectoryEntry] = ExpiringListings(options.metadata_ttl)
        self.tag_listings = TagListings(options.metadata_ttl, is_far=self.is_far)
        self.index_listings: ExpiringListings[IndexEntry] = ExpiringListings(options.metadata_ttl)
        #: Told when a file has become another one, an upload a layer. Set by the tree.
        self.became: Callable[[Node, Node], None] = lambda old, new: None  # noqa: ARG005
        self._nursery = nursery

    def cache_figures(self) -> dict[str, CacheFigures]:
        """How useful what is remembered is. May be called from any thread."""
        listings = self._listings
        hits, misses = sum(each.hits for each in listings), sum(each.misses for each in listings)
        blobs = self.registry.blobs
        figures = {
            "descriptors": CacheFigures(blobs.cache_hits, blobs.cache_misses),
            "listings": CacheFigures(hits, misses),
        }
        content = self.registry.content
        return figures if content is None else figures | {"content": CacheFigures(content.hits, content.misses)}

    def change_options(self, options: TreeOptions) -> None:
        """What can be others while the mount is used: `allow_delete`, `metadata_ttl` and `max_uploads`."""
        self.options = replace(
            self.options,
            allow_delete=options.allow_delete,
            metadata_ttl=options.metadata_ttl,
            max_uploads=options.max_uploads,
        )
        for listings in self._listings:
            listings.change_ttl(options.metadata_ttl)

    @property
    def _listings(self) -> tuple[ExpiringListings[DirectoryEntry] | ExpiringListings[IndexEntry] | UploadListings, ...]:
        return (
            self.catalog_listings,
            self.layer_listings,
            self.upload_listings,
            self.manifest_listings,
            self.tag_listings,
            self.index_listings,
        )

    def service(self, name: str) -> LayerService:
        """The layers of repository `name`."""
        return self.registry.repository(name).layers

    def manifests(self, name: str) -> ManifestService:
        """The manifests of repository `name`."""
        return self.registry.repository(name).manifests

    def tags(self, name: str) -> TagService:
        """The tags of repository `name`."""
        return self.registry.repository(name).tags

    async def put_manifest(
        self, name: str, content: bytes, *, digest: Digest | None = None, tag: str | None = None
    ) -> ManifestInfo:
        """Stores a manifest in repository `name`, by digest or by tag; raises what `ManifestService.put` raises."""
        try:
            descriptor = await self.manifests(name).put(content, digest=digest, tag=tag)
        finally:
            self.manifests_changed(name)
        self.fresh_repositories.discard(name)
        return ManifestInfo(descriptor.digest, descriptor.size, time.time_ns())

    def catalog_changed(self) -> None:
        """There may be a repository more or less: where there are no directories, with what is in it or was."""
        self.catalog_listings.forget_all()

    def layers_changed(self, name: str) -> None:
        """The layers of repository `name` are others now."""
        self.catalog_changed()
        self.layer_listings.forget(name)

    def manifests_changed(self, name: str) -> None:
        """The manifests or tags of repository `name` are others now."""
        self.catalog_changed()
        self.manifest_listings.forget(name)
        self.tag_listings.forget(name)
        self.index_listings.forget(name)

    def permissions(self, mode: int) -> int:
        """`mode` without what the mount's umask takes away."""
        return mode & ~self.options.umask

    def check_writable(self) -> None:
        """Raises `ReadOnlyMount` on a read-only mount."""
        if self.options.read_only:
            raise ReadOnlyMount("the mount is read-only")

    def start(self, task: Callable[[], Awaitable[None]], what: str) -> None:
        """Runs `task` in the background. Its errors must have another way to reach a user; here they are logged."""

        async def run() -> None:
            try:
                await task()
            except LayerfsError as error:
                _log.info("%s: %s", what, error)
            except Exception:  # noqa: BLE001 - or it would take the mount with it
                _log.exception("%s", what)

        self._nursery.start_soon(run, name=what)
