"""What can be wrong with a registry's storage: the kinds of faults, what each means, what to do about it. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from layerfs.layername import LayerName


class Severity(StrEnum):
    #: Something cannot be had, or will be wrong, or stops a registry's garbage collection.
    ERROR = "error"
    #: Nothing is lost: space is, or somebody's next step will be harder.
    WARNING = "warning"


class FaultKind(StrEnum):
    TRUNCATED_BLOB = "truncated-blob"
    ZERO_LENGTH_BLOB = "zero-length-blob"
    CORRUPT_BLOB = "corrupt-blob"
    DANGLING_LAYER_LINK = "dangling-layer-link"
    EMPTY_LINK = "empty-link"
    LINK_WITH_NEWLINE = "link-with-newline"
    TAG_TO_MISSING_MANIFEST = "tag-to-missing-manifest"
    TAG_WITHOUT_CURRENT = "tag-without-current"
    DANGLING_REVISION = "dangling-revision"
    ORPHAN_BLOB = "orphan-blob"
    MANIFEST_NOT_JSON = "manifest-not-json"
    LEFT_OVER_TMP = "left-over-tmp"
    REPO_WITHOUT_MANIFESTS = "repo-without-manifests"
    REPO_WITHOUT_LAYERS = "repo-without-layers"
    OLD_UPLOAD = "old-upload"
    UPLOAD_WITHOUT_STARTEDAT = "upload-without-startedat"
    UPLOAD_WITH_BAD_STARTEDAT = "upload-with-bad-startedat"
    UPLOAD_WITH_BAD_HASHSTATE = "upload-with-bad-hashstate"
    BAD_LINK = "bad-link"
    INVALID_MANIFEST = "invalid-manifest"
    MISSING_REFERENCE = "missing-reference"
    SIZE_MISMATCH = "size-mismatch"
    MISPLACED_BLOB = "misplaced-blob"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class _About:
    severity: Severity
    explanation: str
    remedy: str


_ERROR, _WARNING = Severity.ERROR, Severity.WARNING
_PUSH_AGAIN: Final = "push the image again; if the registry says that the blob exists, upload it through layerfs"
_LINK_AGAIN: Final = "remove the link's directory, then push again what it meant"

_ABOUT: Final[dict[FaultKind, _About]] = {
    FaultKind.TRUNCATED_BLOB: _About(_ERROR, "shorter than a manifest says", f"{_PUSH_AGAIN}, which replaces it"),
    FaultKind.ZERO_LENGTH_BLOB: _About(
        _ERROR,
        "empty, under a digest that is not that of nothing; a registry would keep it even if it were pushed again",
        "remove the blob's directory, or upload the blob through layerfs, which replaces it",
    ),
    FaultKind.CORRUPT_BLOB: _About(
        _ERROR, "its bytes do not have its digest", "upload the blob through layerfs, which replaces it"
    ),
    FaultKind.DANGLING_LAYER_LINK: _About(
        _ERROR, "it leads to no blob that the repository has", f"push the blob again, or {_LINK_AGAIN}"
    ),
    FaultKind.EMPTY_LINK: _About(_ERROR, "it holds nothing; registries answer 500", _LINK_AGAIN),
    FaultKind.LINK_WITH_NEWLINE: _About(
        _ERROR,
        "it ends in a newline, which registries take for a part of the digest; they answer 500",
        "write the digest without the newline",
    ),
    FaultKind.TAG_TO_MISSING_MANIFEST: _About(
        _ERROR, "the repository has no such manifest", "tag another manifest, push this one again, or remove the tag"
    ),
    FaultKind.TAG_WITHOUT_CURRENT: _About(
        _WARNING, "it is listed, but means nothing", "push the tag again, or remove its directory"
    ),
    FaultKind.DANGLING_REVISION: _About(
        _ERROR, "the manifest has no blob", "push the image again, or delete the manifest"
    ),
    FaultKind.ORPHAN_BLOB: _About(
        _WARNING,
        "no repository links it, and no manifest refers to it",
        "a registry's garbage collection removes it; if it was being pushed, link it or push again",
    ),
    FaultKind.MANIFEST_NOT_JSON: _About(
        _ERROR, "a manifest that cannot be parsed; garbage collection stops at it", "delete the manifest"
    ),
    FaultKind.LEFT_OVER_TMP: _About(
        _WARNING,
        "a temporary file that a crash, of a registry or of layerfs, has left",
        "remove it when nothing has written there for an hour",
    ),
    FaultKind.REPO_WITHOUT_MANIFESTS: _About(
        _WARNING,
        "it links all blobs of an image, but has no '_manifests': registries since 3.0 do not see it, and their "
        "garbage collection takes its blobs",
        "push the image again, or remove the repository's directory",
    ),
    FaultKind.REPO_WITHOUT_LAYERS: _About(
        _ERROR,
        "it has manifests, but no '_layers': registries before 3.0 do not see it, and their garbage collection takes "
        "its blobs; the one of later ones stops at it",
        "push the images again",
    ),
    FaultKind.OLD_UPLOAD: _About(_WARNING, "begun long ago and never finished", "layerfs purge-uploads"),
    FaultKind.UPLOAD_WITHOUT_STARTEDAT: _About(
        _WARNING, "registries neither go on with it nor ever purge it", "layerfs purge-uploads"
    ),
    FaultKind.UPLOAD_WITH_BAD_STARTEDAT: _About(
        _WARNING, "when it was begun is no time in RFC 3339; registries never purge it", "layerfs purge-uploads"
    ),
    FaultKind.UPLOAD_WITH_BAD_HASHSTATE: _About(
        _ERROR,
        "a registry would go on from a hash state that is none of this data: it fails, or stores a wrong blob",
        "remove 'hashstates' of the upload: whoever goes on then reads the data again",
    ),
    FaultKind.BAD_LINK: _About(_ERROR, "it holds something else than the digest that belongs there", _LINK_AGAIN),
    FaultKind.INVALID_MANIFEST: _About(
        _WARNING, "JSON, but no manifest that a registry takes", "delete the manifest, or push it again"
    ),
    FaultKind.MISSING_REFERENCE: _About(
        _ERROR, "a manifest names a blob that the repository does not link", "push the image again"
    ),
    FaultKind.SIZE_MISMATCH: _About(
        _WARNING,
        "of another size than a manifest says: one of the two is wrong",
        "find out which by --deep; if the blob is good, push an image with the right size",
    ),
    FaultKind.MISPLACED_BLOB: _About(
        _ERROR, "a blob's file at a place that is no digest; garbage collection stops at it", "move it away"
    ),
    FaultKind.UNREADABLE: _About(
        _ERROR, "it cannot be looked at, so what is there is not checked", "see that it can be read, and check again"
    ),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong. `path` is where it lies in the storage, `detail` what is particular about it."""

    kind: FaultKind
    path: str
    repository: str | None = None
    tag: str | None = None
    digest: LayerName | None = None
    upload: str | None = None
    detail: str = ""

    @property
    def severity(self) -> Severity:
        return _ABOUT[self.kind].severity

    @property
    def explanation(self) -> str:
        """What is wrong, in one line."""
        about = _ABOUT[self.kind].explanation
        return f"{about} ({self.detail})" if self.detail else about

    @property
    def remedy(self) -> str:
        """What its owner can do about it, in one line."""
        return _ABOUT[self.kind].remedy

    @property
    def place(self) -> str:
        """Repository and tag, digest and upload, as far as they matter; the path if none does."""
        name = self.repository if self.tag is None else f"{self.repository}:{self.tag}"
        parts = [part for part in (name, self.digest and str(self.digest), self.upload) if part]
        return " ".join(parts) or self.path

    @property
    def identity(self) -> tuple[FaultKind, str]:
        """The same for a fault that is found again."""
        return self.kind, self.path

    def as_dict(self) -> dict[str, str | None]:
        """For JSON: all fields as text, None where one does not apply."""
        return {
            "kind": self.kind.value,
            "severity": self.severity.value,
            "place": self.place,
            "repository": self.repository,
            "tag": self.tag,
            "digest": str(self.digest) if self.digest else None,
            "upload": self.upload,
            "path": self.path,
            "explanation": self.explanation,
            "remedy": self.remedy,
        }
