"""Where things lie in registry storage: today's layout (distribution 2.1 and later), built and parsed.

Each kind of place is a small class whose `path` builds it; `parse` goes back from a path to the place. The source is
distribution's `registry/storage/paths.go`; `docs/architecture.md` shows the whole tree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from layerfs.digest import Digest
from layerfs.errors import InvalidName
from layerfs.layername import LayerName, layer_name_at
from layerfs.names import check_stored_repository_name, check_tag, check_upload_id

ROOT: Final = "/docker/registry/v2"
REPOSITORIES: Final = f"{ROOT}/repositories"
BLOBS: Final = f"{ROOT}/blobs"

#: Says, in a storage without directories, that a registry was begun there, before there is anything else. It can be
#: no repository's name, and registries pass over it.
BEGUN: Final = f"{REPOSITORIES}/.layerfs"

#: The directories of which any one makes its parent a repository: 2.x looks for the first, 3.x for the second.
LAYERS: Final = "_layers"
MANIFESTS: Final = "_manifests"
UPLOADS: Final = "_uploads"


@dataclass(frozen=True, slots=True)
class BlobData:
    """The bytes of a blob, shared by all repositories."""

    digest: Digest

    @property
    def path(self) -> str:
        return f"{BLOBS}/{self.digest.algorithm}/{self.digest.hex[:2]}/{self.digest.hex}/data"


@dataclass(frozen=True, slots=True)
class RepositoryDirectory:
    """A repository, or a directory that is only the beginning of repository names; the empty name is the root."""

    name: str

    @property
    def path(self) -> str:
        return f"{REPOSITORIES}/{self.name}" if self.name else REPOSITORIES

    @property
    def layers(self) -> str:
        return f"{self.path}/{LAYERS}"

    @property
    def manifests(self) -> str:
        return f"{self.path}/{MANIFESTS}"

    @property
    def uploads(self) -> str:
        return f"{self.path}/{UPLOADS}"


@dataclass(frozen=True, slots=True)
class LayerLink:
    """The link that makes a blob a layer of a repository."""

    name: str
    digest: LayerName

    @property
    def path(self) -> str:
        return f"{REPOSITORIES}/{self.name}/{LAYERS}/{self.digest.directory}/link"


@dataclass(frozen=True, slots=True)
class ManifestRevisionLink:
    """The link that makes a blob a manifest of a repository."""

    name: str
    digest: Digest

    @property
    def path(self) -> str:
        return f"{REPOSITORIES}/{self.name}/{MANIFESTS}/revisions/{self.digest.directory}/link"


@dataclass(frozen=True, slots=True)
class TagCurrentLink:
    """The link to the manifest that a tag means now."""

    name: str
    tag: str

    @property
    def path(self) -> str:
        return f"{REPOSITORIES}/{self.name}/{MANIFESTS}/tags/{self.tag}/current/link"


@dataclass(frozen=True, slots=True)
class TagIndexLink:
    """The link to a manifest that a tag means or has meant."""

    name: str
    tag: str
    digest: Digest

    @property
    def path(self) -> str:
        tag = f"{REPOSITORIES}/{self.name}/{MANIFESTS}/tags/{self.tag}"
        return f"{tag}/index/{self.digest.directory}/link"


@dataclass(frozen=True, slots=True)
class UploadDirectory:
    """All that is stored of an unfinished upload."""

    name: str
    uuid: str

    @property
    def path(self) -> str:
        return f"{REPOSITORIES}/{self.name}/{UPLOADS}/{self.uuid}"

    @property
    def data(self) -> str:
        return f"{self.path}/data"

    @property
    def started_at(self) -> str:
        return f"{self.path}/startedat"

    @property
    def hash_states(self) -> str:
        return f"{self.path}/hashstates"

    def hash_state(self, count: int) -> str:
        """Where the SHA-256 state of the first `count` bytes is kept."""
        return f"{self.hash_states}/sha256/{count}"

    @property
    def file_name(self) -> str:
        """Ours, no registry reads it: the name that the upload has in a mounted tree."""
        return f"{self.path}/layerfs-name"

    @property
    def committing(self) -> str:
        """Ours, no registry reads it: the canonical digest of an upload that is being finished by another digest."""
        return f"{self.path}/layerfs-committing"

    @property
    def durable(self) -> str:
        """Ours, no registry reads it: how many bytes were durable at least, where no hash state says so."""
        return f"{self.path}/layerfs-durable"


Place = (
    BlobData | RepositoryDirectory | LayerLink | ManifestRevisionLink | TagCurrentLink | TagIndexLink | UploadDirectory
)

_ALGORITHM_AND_HEX = r"(?P<algorithm>[a-z0-9]+)/(?P<hex>[a-f0-9]+)"
_REPOSITORY = re.escape(REPOSITORIES) + r"/(?P<name>[^_/][^/]*(?:/[^_/][^/]*)*)"
_BLOB = re.compile(re.escape(BLOBS) + r"/(?P<algorithm>[a-z0-9]+)/(?P<prefix>[a-f0-9]{2})/(?P<hex>[a-f0-9]+)/data")
_REPOSITORY_DIRECTORY = re.compile(_REPOSITORY)
_LAYER_LINK = re.compile(rf"{_REPOSITORY}/{LAYERS}/(?P<directory>(?:tarsum/[^/]+/)?[^/]+/[^/]+)/link")
_REVISION_LINK = re.compile(rf"{_REPOSITORY}/{MANIFESTS}/revisions/{_ALGORITHM_AND_HEX}/link")
_TAG_CURRENT_LINK = re.compile(rf"{_REPOSITORY}/{MANIFESTS}/tags/(?P<tag>[^/]+)/current/link")
_TAG_INDEX_LINK = re.compile(rf"{_REPOSITORY}/{MANIFESTS}/tags/(?P<tag>[^/]+)/index/{_ALGORITHM_AND_HEX}/link")
_UPLOAD = re.compile(rf"{_REPOSITORY}/{UPLOADS}/(?P<uuid>[^/]+)(?:/.*)?")


def parse(path: str) -> Place | None:
    """The place that `path` is, anything in an upload counting as that upload; None where no registry puts anything."""
    try:
        return _parse(path)
    except InvalidName:
        return None


def _parse(path: str) -> Place | None:
    if match := _BLOB.fullmatch(path):
        return BlobData(_digest(match)) if match["hex"].startswith(match["prefix"]) else None
    if match := _LAYER_LINK.fullmatch(path):
        layer = layer_name_at(match["directory"])
        return LayerLink(_name(match), layer) if layer is not None else None
    if match := _REVISION_LINK.fullmatch(path):
        return ManifestRevisionLink(_name(match), _digest(match))
    if match := _TAG_CURRENT_LINK.fullmatch(path):
        return TagCurrentLink(_name(match), check_tag(match["tag"]))
    if match := _TAG_INDEX_LINK.fullmatch(path):
        return TagIndexLink(_name(match), check_tag(match["tag"]), _digest(match))
    if match := _UPLOAD.fullmatch(path):
        return UploadDirectory(_name(match), check_upload_id(match["uuid"]))
    if match := _REPOSITORY_DIRECTORY.fullmatch(path):
        return RepositoryDirectory(_name(match))
    return None


def _name(match: re.Match[str]) -> str:
    return check_stored_repository_name(match["name"])


def _digest(match: re.Match[str]) -> Digest:
    return Digest.parse(f"{match['algorithm']}:{match['hex']}")
