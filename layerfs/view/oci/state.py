"""What a mount remembers of the layouts of its repositories between calls."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from layerfs.digest import Digest
from layerfs.errors import LayerUploadUnknown, UploadLimit
from layerfs.oci import IndexContent, IndexEntry, render_index
from layerfs.view.caller import Process
from layerfs.view.live_uploads import LiveUploads
from layerfs.view.state import MountState

#: Temporary files and directories in all layouts of a mount; killed clients leave some.
_SCRATCH_LIMIT: Final = 10_000

#: Manifests that no index names yet: how many of them, and their bytes, in all layouts of a mount.
_CANDIDATES_LIMIT: Final = 4096
_CANDIDATES_SIZE: Final = 64 << 20

#: Processes of which it is known what they have read.
_READERS_KEPT: Final = 4096

#: Repositories of which it is known what their indexes were, and how many of the newest each.
_HISTORIES_KEPT: Final = 1024
_CONTENTS_KEPT: Final = 16

#: An index that lists nothing.
NO_CONTENT: Final = IndexContent({}, frozenset())


@dataclass(frozen=True, slots=True)
class ScratchFile:
    """A temporary file: an upload, and when it was begun (by `time.monotonic`)."""

    uuid: str
    began_at: float


class ScratchNames:
    """The temporary files and directories in one directory of a layout, by name."""

    def __init__(self) -> None:
        self.files: dict[str, ScratchFile] = {}
        self.directories: dict[str, ScratchNames] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.files or name in self.directories

    def __bool__(self) -> bool:
        return bool(self.files or self.directories)

    def count(self) -> int:
        """All that is in here and below."""
        below = sum(1 + names.count() for names in self.directories.values())
        return len(self.files) + below


@dataclass(frozen=True, slots=True)
class Candidate:
    """A manifest that has arrived as a blob; it becomes one of the repository's when an index names it.

    Its bytes are also those of the upload `uuid`, so that they outlive us; `stored_at` is in nanoseconds since 1970.
    """

    repository: str
    digest: Digest
    content: bytes = field(repr=False)
    uuid: str
    stored_at: int


class Layout:
    """What is remembered of the layout of one repository."""

    def __init__(self, repository: str) -> None:
        self.repository = repository
        self.scratch = ScratchNames()
        #: The temporary files beside the blobs, by directory.
        self.blob_scratch: dict[str, ScratchNames] = {}
        #: One index is applied at a time.
        self.applying = trio.Lock()

    @property
    def is_idle(self) -> bool:
        """Whether nothing would be lost with it."""
        return not (self.scratch or any(self.blob_scratch.values()) or self.applying.locked())

    def beside_blobs(self, directory: str) -> ScratchNames:
        """The temporary names in `blobs/<directory>`; in `blobs` itself for ""."""
        return self.blob_scratch.setdefault(directory, ScratchNames())


@dataclass(slots=True)
class IndexHistory:
    """What the index of a repository was on this mount.

    `contents` are the newest, each since a time by `time.monotonic`; `changed_at` is when the last one was first seen,
    in nanoseconds since 1970. `error` is why the last one that was written was refused.
    """

    contents: deque[tuple[float, IndexContent]] = field(default_factory=lambda: deque(maxlen=_CONTENTS_KEPT))
    changed_at: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class ShownIndex:
    """An index as it is listed, what that comes to, and its bytes."""

    entries: Sequence[IndexEntry]
    content: IndexContent
    text: bytes = field(repr=False)


class Layouts:
    """All layouts of a mount."""

    def __init__(self, state: MountState, uploads: LiveUploads) -> None:
        self.state = state
        self.uploads = uploads
        self._layouts: dict[str, Layout] = {}
        self._candidates: OrderedDict[tuple[str, Digest], Candidate] = OrderedDict()
        self._read: OrderedDict[tuple[Process, str], IndexContent] = OrderedDict()
        self._histories: OrderedDict[str, IndexHistory] = OrderedDict()
        self._shown: ShownIndex | None = None

    def of(self, repository: str) -> Layout:
        """What is remembered of a repository's layout."""
        layout = self._layouts.get(repository)
        if layout is None:
            self._drop_idle()
            layout = self._layouts[repository] = Layout(repository)
        return layout

    def check_room(self) -> None:
        """Raises `UploadLimit` if there are as many temporary names as there may be."""
        count = sum(
            names.count()
            for layout in self._layouts.values()
            for names in (layout.scratch, *layout.blob_scratch.values())
        )
        if count >= _SCRATCH_LIMIT:
            raise UploadLimit(
                f"{_SCRATCH_LIMIT} temporary files of clients are in the image layouts of this mount, as many as there "
                "may be: mount it again, and remove what killed clients have left with layerfs purge-uploads"
            )

    # --- manifests that no index names yet ------------------------------------------------------------------------

    def candidate(self, repository: str, digest: Digest) -> Candidate | None:
        """The manifest, if it has arrived and no index has named it."""
        return self._candidates.get((repository, digest))

    def add_candidate(self, candidate: Candidate) -> Candidate | None:
        """Remembers it, and returns the one in whose place it is. The oldest are forgotten beyond what is allowed."""
        old = self._candidates.pop((candidate.repository, candidate.digest), None)
        self._candidates[candidate.repository, candidate.digest] = candidate
        while len(self._candidates) > 1 and (
            len(self._candidates) > _CANDIDATES_LIMIT
            or sum(len(other.content) for other in self._candidates.values()) > _CANDIDATES_SIZE
        ):
            self._candidates.popitem(last=False)
        return old

    def remove_candidate(self, candidate: Candidate) -> None:
        """It is a manifest now, or a layer, or gone."""
        if self._candidates.get((candidate.repository, candidate.digest)) is candidate:
            del self._candidates[candidate.repository, candidate.digest]

    async def discard(self, candidate: Candidate) -> None:
        """It is needed no more: neither its name nor the upload that has its bytes."""
        self.remove_candidate(candidate)
        with contextlib.suppress(LayerUploadUnknown):
            await self.uploads.cancel(candidate.repository, candidate.uuid)

    # --- what clients have read -----------------------------------------------------------------------------------

    def was_read(self, process: Process | None, repository: str, content: IndexContent) -> None:
        """A process knows the index as it is in `content`, because it has read or written it so."""
        if process is None:
            return
        self._read[process, repository] = content
        self._read.move_to_end((process, repository))
        if len(self._read) > _READERS_KEPT:
            self._read.popitem(last=False)

    def read_by(self, process: Process | None, repository: str) -> IndexContent | None:
        """What a process knows of the index; None if it is not known to have seen any."""
        return self._read.get((process, repository)) if process is not None else None

    def history(self, repository: str) -> IndexHistory:
        """What is known of the index of a repository; of many repositories, only of those that were used last."""
        history = self._histories.setdefault(repository, IndexHistory())
        self._histories.move_to_end(repository)
        if len(self._histories) > _HISTORIES_KEPT:
            self._histories.popitem(last=False)
        return history

    def shown(self, entries: Sequence[IndexEntry]) -> ShownIndex:
        """The index of these entries. Made once for a listing: a client asks for its size, then opens it."""
        if self._shown is None or self._shown.entries is not entries:
            self._shown = ShownIndex(entries, IndexContent.from_entries(entries), render_index(entries))
        return self._shown

    def is_now(self, repository: str, content: IndexContent) -> IndexHistory:
        """The index of a repository was just seen to be `content`."""
        history = self.history(repository)
        if not history.contents or history.contents[-1][1] != content:
            history.contents.append((time.monotonic(), content))
            history.changed_at = time.time_ns()
        return history

    def known_at(self, repository: str, moment: float) -> IndexContent:
        """What was last shown of the index until `moment`; nothing if it was not read by then."""
        shown = [content for since, content in self.history(repository).contents if since <= moment]
        return shown[-1] if shown else NO_CONTENT

    def _drop_idle(self) -> None:
        for repository in [name for name, layout in self._layouts.items() if layout.is_idle]:
            del self._layouts[repository]
