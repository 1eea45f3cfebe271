"""`index.json` of a layout: the tags of a repository, and what clients that write it want changed.

Nobody locks an index: a client reads all of it, and minutes later writes all of it back. So what each process has read
is remembered, and what it writes is taken as the difference to that. Of a process that has read nothing (a shell's `mv`
of what `jq` has read) it is assumed that it knew what was last shown when it began to write; but it removes nothing by
leaving it out, because it may bring the index of another layout.
"""

from __future__ import annotations

import os
import time
from collections.abc import Hashable, Sequence
from typing import Final

import trio

from layerfs.digest import Digest
from layerfs.driver.interface import FileReader
from layerfs.errors import LayerfsError, LayerUnknown, ManifestNotHere, TagUnknown
from layerfs.manifest import MANIFEST_LIMIT, Descriptor, parse_manifest
from layerfs.oci import INDEX_FILE, INDEX_LIMIT, Changes, IndexContent, IndexEntry, merge, parse_index
from layerfs.registry.tags import Tag
from layerfs.view.buffered import BufferedHandle, MemoryHandle
from layerfs.view.caller import Process, calling_process
from layerfs.view.nodes import Attributes, Handle, Node, file_attributes
from layerfs.view.oci.state import Candidate, Layouts
from layerfs.view.upload_finishing import finish

#: Bytes beyond which an index is parsed in a thread, one at a time: one of 50,000 tags takes half a second.
_INLINE_LIMIT: Final = 256 << 10
_parsers: Final = trio.CapacityLimiter(1)


class IndexFile(Node):
    """`index.json` of a repository's layout."""

    def __init__(self, layouts: Layouts, repository: str, layout_path: str) -> None:
        self.path = f"{layout_path}/{INDEX_FILE}"
        self.name = INDEX_FILE
        self._layouts = layouts
        self._state = layouts.state
        self._repository = repository

    @property
    def key(self) -> Hashable:
        return ("index", self._repository)

    async def attributes(self) -> Attributes:
        shown = self._layouts.shown(await current_entries(self._layouts, self._repository))
        changed_at = self._layouts.is_now(self._repository, shown.content).changed_at
        return self._attributes(len(shown.text), changed_at)

    def attributes_unread(self) -> Attributes:
        """For a listing, which should not cost reading all tags: whoever wants the size asks again at once."""
        return self._attributes(0, self._state.mounted_at)

    async def extended_attributes(self) -> dict[str, str]:
        error = self._layouts.history(self._repository).error
        return {"repository": self._repository} | ({"error": error} if error else {})

    async def open(self, flags: int) -> Handle:
        """For writing, the handle holds what is there until it is emptied; it counts when it is closed."""
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if writes or flags & os.O_TRUNC:
            self._state.check_writable()
        process = calling_process()
        reads = flags & os.O_ACCMODE != os.O_WRONLY
        shown = self._layouts.shown(await current_entries(self._layouts, self._repository))
        now = shown.content
        self._layouts.is_now(self._repository, now)
        if reads and not flags & os.O_TRUNC:
            self._layouts.was_read(process, self._repository, now)
        content = b"" if flags & os.O_TRUNC else shown.text
        if not writes:
            return MemoryHandle(self.path, content)
        known = self._layouts.read_by(process, self._repository)

        async def put(written: bytes) -> None:
            await self._apply(written, process, known, now)

        return BufferedHandle(self.path, put, limit=INDEX_LIMIT, content=content)

    async def truncate(self, size: int) -> None:  # noqa: ARG002
        """Taken and ignored: a truncated index is none, and what follows is what counts."""
        self._state.check_writable()

    async def replace(self, content: bytes, began_at: float) -> None:
        """Somebody renames a file with this content, begun at `began_at` (monotonic), over the index."""
        process = calling_process()
        known = self._layouts.read_by(process, self._repository)
        await self._apply(content, process, known, self._layouts.known_at(self._repository, began_at))

    def check_ownership_change(self) -> None:
        """Taken and ignored: clients set the mode of what they have just written."""
        self._state.check_writable()

    async def _apply(
        self, content: bytes, process: Process | None, known: IndexContent | None, shown: IndexContent
    ) -> None:
        """Does what `process` means; `known` is what it has read, `shown` what it can be assumed to know otherwise."""
        history = self._layouts.history(self._repository)
        try:
            written = IndexContent.from_entries(await _parse(content))
            base = known or _without_what_is_left_out(shown, written)
            await apply_index(self._layouts, self._repository, written, base)
        except LayerfsError as error:
            history.error = str(error)
            raise
        history.error = ""
        # From here on it knows what it has written itself, whatever that was merged with.
        self._layouts.was_read(process, self._repository, written)

    def _attributes(self, size: int, modified_at: int) -> Attributes:
        return file_attributes(permissions=self._state.permissions(0o644), size=size, modified_at=modified_at)


async def current_entries(layouts: Layouts, repository: str) -> Sequence[IndexEntry]:
    """The tags of a repository whose manifests are there, in order of their names; from memory while that is fresh."""
    listings = layouts.state.index_listings
    entries = listings.get(repository)
    if entries is None:
        began_at = time.monotonic()
        entries = await entries_of(layouts, repository, await layouts.state.tags(repository).list())
        listings.put(repository, began_at, entries)
    return entries


async def entries_of(layouts: Layouts, repository: str, tags: Sequence[Tag]) -> list[IndexEntry]:
    """What an index lists for these tags."""
    digests = list({tag.digest: None for tag in tags})
    described = dict(zip(digests, await layouts.state.manifests(repository).describe(digests), strict=True))
    return [
        IndexEntry(descriptor, tag.name) for tag in tags if isinstance(descriptor := described[tag.digest], Descriptor)
    ]


async def apply_index(layouts: Layouts, repository: str, written: IndexContent, base: IndexContent) -> None:
    """Does what a writer that knew `base` means by `written`: all of it, or nothing and raises why."""
    try:
        async with layouts.of(repository).applying:
            await _apply(layouts, repository, written, base)
    finally:
        layouts.state.manifests_changed(repository)


def _without_what_is_left_out(shown: IndexContent, written: IndexContent) -> IndexContent:
    return IndexContent({tag: shown.tags[tag] for tag in written.tags if tag in shown.tags}, shown.untagged)


async def _apply(layouts: Layouts, repository: str, written: IndexContent, base: IndexContent) -> None:
    state = layouts.state
    tags = {tag.name: tag.digest for tag in await state.tags(repository).list()}
    changes = merge(base, IndexContent(tags, frozenset()), written)
    arrived = await _Arrived.of(layouts, repository, changes, written)
    for candidate in arrived.layers:
        await finish(layouts.uploads, repository, candidate.uuid, candidate.uuid, candidate.digest)
        layouts.remove_candidate(candidate)
    await state.manifests(repository).put_together(list(arrived.manifests.values()), tags=changes.tags)
    state.fresh_repositories.discard(repository)
    for candidate in arrived.candidates:
        await layouts.discard(candidate)
    if state.options.allow_delete:
        await _untag(layouts, repository, changes)


async def _untag(layouts: Layouts, repository: str, changes: Changes) -> None:
    tags = layouts.state.tags(repository)
    for tag, digest in changes.removed.items():
        try:
            # Looked at again: a registry may have moved it just now.
            if await tags.get(tag) == digest:
                await tags.untag(tag)
        except TagUnknown:
            continue


class _Arrived:
    """What has arrived as blobs and is named now, by an index or by a manifest that is."""

    def __init__(self, layouts: Layouts, repository: str) -> None:
        #: The bytes of the manifests that have to be put.
        self.manifests: dict[Digest, bytes] = {}
        #: Those of them that were candidates.
        self.candidates: list[Candidate] = []
        #: Candidates that only look like manifests: a manifest has them among its layers.
        self.layers: list[Candidate] = []
        self._layouts = layouts
        self._repository = repository

    @classmethod
    async def of(cls, layouts: Layouts, repository: str, changes: Changes, written: IndexContent) -> _Arrived:
        """Raises `ManifestNotHere` if the index names what has not arrived, `InvalidManifest` if it is no manifest."""
        arrived = cls(layouts, repository)
        names = {digest: tag for tag, digest in changes.tags.items()}
        for digest in {*names, *changes.untagged}:
            if not await arrived._add(digest):
                raise ManifestNotHere(repository, digest, names.get(digest))
        for digest in written.manifests:
            # One that is there, but damaged, and that was therefore sent again.
            if layouts.candidate(repository, digest) is not None:
                await arrived._add(digest)
        return arrived

    async def _add(self, top: Digest) -> bool:
        """Takes a manifest, and what it refers to, as far as it has arrived; whether it has, now or before."""
        waiting = [top]
        while waiting:
            digest = waiting.pop()
            if digest in self.manifests:
                continue
            content = await self._content(digest)
            if content is None:
                continue
            self.manifests[digest] = content
            references = parse_manifest(content).references()
            waiting += references.manifests
            for blob in references.blobs:
                candidate = self._layouts.candidate(self._repository, blob)
                if candidate is not None and not await self._layouts.state.service(self._repository).exists(blob):
                    self.layers.append(candidate)
        return top in self.manifests or await self._layouts.state.manifests(self._repository).exists(top)

    async def _content(self, digest: Digest) -> bytes | None:
        """The bytes of a manifest that has arrived and is not stored as one."""
        candidate = self._layouts.candidate(self._repository, digest)
        if candidate is not None:
            self.candidates.append(candidate)
            return candidate.content
        if await self._layouts.state.manifests(self._repository).exists(digest):
            return None
        # It may have been uploaded as a layer, as anything can be.
        try:
            layer = await self._layouts.state.service(self._repository).fetch(digest)
        except LayerUnknown:
            return None
        async with layer:
            return await _read(layer.reader) if layer.size <= MANIFEST_LIMIT else None


async def _parse(content: bytes) -> tuple[IndexEntry, ...]:
    """Raises `InvalidIndex`."""
    if len(content) <= _INLINE_LIMIT:
        return parse_index(content)
    return await trio.to_thread.run_sync(parse_index, content, limiter=_parsers)


async def _read(reader: FileReader) -> bytes:
    return await reader.read(0, reader.size)
