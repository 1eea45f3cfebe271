"""Everything that can go wrong, named in the words of the layer that finds it.

One module, because the errno table (`layerfs.fuse.errnos`) must have a row for every class here, and a test
walks this module to see that it has. Each class says what is wrong and with which values; none knows an errno.

The names of the layer errors are the Python forms of those in distribution's original `layer.go`
(`ErrLayerUnknown` is `LayerUnknown`, and so on).
"""

from __future__ import annotations

from collections.abc import Sequence


class LayerfsError(Exception):
    """Base of every error that layerfs raises on purpose."""


# --- values ------------------------------------------------------------------------------------------------


class InvalidName(LayerfsError):
    """A name that the grammar of its kind does not allow."""

    kind = "name"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"invalid {self.kind} {name!r}: {reason}")
        self.name = name
        self.reason = reason


class InvalidRepositoryName(InvalidName):
    """Not a repository name that may be created (or, when reading, could be in storage)."""

    kind = "repository name"


class InvalidTag(InvalidName):
    """Not a tag."""

    kind = "tag"


class InvalidUploadId(InvalidName):
    """Not an upload id."""

    kind = "upload id"


class InvalidUploadName(InvalidName):
    """Not a file name that an upload can be given."""

    kind = "upload name"


class InvalidDigest(InvalidName):
    """Not a digest; the three subclasses are go-digest's three errors."""

    kind = "digest"


class InvalidDigestFormat(InvalidDigest):
    """Not of the form `algorithm:hex`."""


class InvalidDigestLength(InvalidDigest):
    """The right form, but not as many hex digits as the algorithm has."""


class UnsupportedDigestAlgorithm(InvalidDigest):
    """The right form, but of an algorithm that content cannot be verified with."""


class InvalidTar(LayerfsError):
    """Content that has no TarSum, because it is no tar archive or one that docker refused to read.

    `position` is where the header of the entry begins that is at fault, in bytes.
    """

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"no tar archive that a TarSum could be of: at byte {position}: {reason}")
        self.position = position
        self.reason = reason


class TruncatedTar(InvalidTar):
    """A tar archive that breaks off; `position` is where."""


class InvalidLayout(LayerfsError):
    """The `oci-layout` file of an OCI image layout that is none, or of another version."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"invalid oci-layout: {reason}")
        self.reason = reason


class InvalidIndex(LayerfsError):
    """An `index.json` of an OCI image layout that is none, or that has what a registry cannot have."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"invalid index.json: {reason}")
        self.reason = reason


# --- storage driver ------------------------------------------------------------------------------------------


class DriverError(LayerfsError):
    """Base of what a storage driver raises; `path` is the path inside the storage."""

    what = "storage error"

    def __init__(self, path: str, detail: str = "") -> None:
        super().__init__(f"{self.what}: {path!r}" + (f": {detail}" if detail else ""))
        self.path = path
        self.detail = detail


class PathNotFound(DriverError):
    """Nothing is stored at the path."""

    what = "path not found"


class InvalidPath(DriverError):
    """The path is not absolute or has characters that no driver accepts; nothing was touched."""

    what = "invalid path"


class InvalidOffset(DriverError):
    """A negative offset, or one that the backend cannot write at."""

    what = "invalid offset"


class NotRegularFile(DriverError):
    """A directory, symbolic link, FIFO, socket or device stands where a file should be."""

    what = "not a regular file"


class PathNotEmpty(DriverError):
    """A directory that must be empty is not."""

    what = "directory not empty"


class ContentTooLarge(DriverError):
    """A file is larger than what it is read for may be."""

    what = "content too large"


class ShortRead(DriverError):
    """The backend gave fewer bytes than the file has."""

    what = "fewer bytes than expected"


class ContentChanged(DriverError):
    """Another process changed a file that this one is writing or publishing."""

    what = "changed by another process"


class StorageFull(DriverError):
    """No space, no inodes or no quota left in the backend."""

    what = "no space left in storage"


class AccessDenied(DriverError):
    """The backend refuses these credentials or permissions."""

    what = "access to storage denied"


class StorageReadOnly(DriverError):
    """The backend itself is read-only."""

    what = "storage is read-only"


class BackendFailure(DriverError):
    """The backend is out of reach, or failed in a way that has no name of its own."""

    what = "storage backend failed"


class TooManyOpenFiles(DriverError):
    """The process or the machine has no file descriptor left."""

    what = "too many open files"


class UnsupportedByDriver(DriverError):
    """This backend cannot do that safely, so it is not done at all."""

    what = "not supported by this storage"


class UnknownSource(DriverError):
    """No driver for such a source of storage, or what that driver needs is not installed."""

    what = "cannot open storage"


# --- registry ------------------------------------------------------------------------------------------------


class NotARegistry(LayerfsError):
    """The storage holds no `docker/registry/v2`."""


class RepositoryUnknown(LayerfsError):
    """No repository of this name in storage."""

    def __init__(self, name: str) -> None:
        super().__init__(f"unknown repository {name!r}")
        self.name = name


class RepositoryNotEmpty(LayerfsError):
    """A repository that still holds layers, manifests, uploads or other repositories cannot be removed."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"repository {name!r} is not empty: it holds {what}")
        self.name = name


class BlobUnknown(LayerfsError):
    """No blob with this digest in the blob store."""

    def __init__(self, digest: object) -> None:
        super().__init__(f"unknown blob {digest}")
        self.digest = digest


class BlobDamaged(LayerfsError):
    """What storage gives for a blob is not what its digest says; `actual` is the digest that it has."""

    def __init__(self, digest: object, actual: object) -> None:
        super().__init__(f"blob {digest} is damaged: what storage gives for it is {actual}")
        self.digest = digest
        self.actual = actual


class BlobUnverifiable(LayerfsError):
    """A blob cannot be kept in the content cache, and so not be verified before it is read."""

    def __init__(self, digest: object, reason: str) -> None:
        super().__init__(f"cannot keep blob {digest} in the cache: {reason}")
        self.digest = digest


class BlobNotVerifiedYet(LayerfsError):
    """A blob is still being fetched, and is not given out before it is verified; `count` of `size` bytes are here."""

    def __init__(self, digest: object, count: int, size: int) -> None:
        super().__init__(f"blob {digest} is not verified yet: {count} of {size} bytes were fetched, which goes on")
        self.digest = digest


class LinkInvalid(LayerfsError):
    """A link file in storage whose content is no digest (empty, malformed, too long)."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(f"invalid link {path!r}: {detail}")
        self.path = path


class LinkMismatch(LinkInvalid):
    """A link that names other content than its path says; following it would show wrong bytes."""


class LayerUnknown(LayerfsError):
    """The repository has no such layer, or its link leads nowhere."""

    def __init__(self, name: str, digest: object, reason: str = "") -> None:
        super().__init__(f"unknown layer {digest} in repository {name!r}" + (f": {reason}" if reason else ""))
        self.name = name
        self.digest = digest


class LayerExists(LayerfsError):
    """The repository has this layer already."""

    def __init__(self, name: str, digest: object) -> None:
        super().__init__(f"layer {digest} exists in repository {name!r}")
        self.name = name
        self.digest = digest


class LayerUploadUnknown(LayerfsError):
    """No such upload in this repository: never begun, cancelled, or finished."""

    def __init__(self, name: str, uuid: str) -> None:
        super().__init__(f"unknown upload {uuid!r} in repository {name!r}")
        self.name = name
        self.uuid = uuid


class BlobInUse(LayerfsError):
    """A blob that was to be removed as garbage, and is none, or may be part of what is just being pushed."""

    def __init__(self, name: str, digest: object, reason: str) -> None:
        super().__init__(f"{digest} is not removed from repository {name!r}: {reason}")
        self.name = name
        self.digest = digest
        self.reason = reason


class LayerUploadInvalid(LayerfsError):
    """An upload in storage that cannot be used as it is (its `startedat` is no time, say)."""

    def __init__(self, name: str, uuid: str, reason: str) -> None:
        super().__init__(f"upload {uuid!r} in repository {name!r} cannot be used: {reason}")
        self.name = name
        self.uuid = uuid


class LayerUploadBusy(LayerfsError):
    """The upload is being written or finished by somebody else."""

    def __init__(self, name: str, uuid: str, reason: str) -> None:
        super().__init__(f"upload {uuid!r} in repository {name!r} is busy: {reason}")
        self.name = name
        self.uuid = uuid


class LayerInvalidDigest(LayerfsError):
    """The uploaded content does not match the digest it was to be finished with; the upload is unchanged."""

    def __init__(self, expected: object, actual: object, size: int) -> None:
        super().__init__(f"content does not match: expected {expected}, but the {size} bytes uploaded are {actual}")
        self.expected = expected
        self.actual = actual
        self.size = size


class LayerInvalidLength(LayerfsError):
    """The upload does not have the size it was to be finished with; the upload is unchanged."""

    def __init__(self, expected: int, actual: int) -> None:
        super().__init__(f"invalid length: expected {expected} bytes, the upload has {actual}")
        self.expected = expected
        self.actual = actual


class LayerTarSumVersionUnsupported(LayerfsError):
    """A TarSum digest of a version that cannot be verified."""

    def __init__(self, digest: object) -> None:
        super().__init__(f"unsupported tarsum version: {digest}")


class LayerClosed(LayerfsError):
    """A layer or upload was used after it was closed, finished or cancelled."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is closed")


class InvalidManifest(LayerfsError):
    """Content that is no manifest: malformed JSON, a wrong type, or not what its media type says."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"invalid manifest: {reason}")
        self.reason = reason


class ManifestTooLarge(LayerfsError):
    """A manifest of more bytes than registries take."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"manifest too large: at most {limit} bytes are allowed")
        self.limit = limit


class ManifestInvalidDigest(LayerfsError):
    """A manifest does not match the digest it was to be stored by; nothing was changed."""

    def __init__(self, expected: object, actual: object) -> None:
        super().__init__(f"manifest does not match: expected {expected}, but it is {actual}")
        self.expected = expected
        self.actual = actual


class ManifestUnknown(LayerfsError):
    """Base of the two ways in which a repository has no such manifest."""


class ManifestUnknownRevision(ManifestUnknown):
    """The repository has no manifest of this digest, or its link leads nowhere."""

    def __init__(self, name: str, digest: object, reason: str = "") -> None:
        super().__init__(f"unknown manifest {digest} in repository {name!r}" + (f": {reason}" if reason else ""))
        self.name = name
        self.digest = digest


class TagUnknown(ManifestUnknown):
    """The repository has no such tag, or its link is no digest."""

    def __init__(self, name: str, tag: str, reason: str = "") -> None:
        super().__init__(f"unknown tag {tag!r} in repository {name!r}" + (f": {reason}" if reason else ""))
        self.name = name
        self.tag = tag


class ManifestVerification(LayerfsError):
    """A well-formed manifest that cannot be stored in this repository; `errors` is everything that is wrong with it."""

    def __init__(self, name: str, digest: object, errors: Sequence[LayerfsError]) -> None:
        reasons = "; ".join(str(error) for error in errors[:10]) + ("; …" if len(errors) > 10 else "")
        super().__init__(f"manifest {digest} cannot be stored in repository {name!r}: {reasons}")
        self.name = name
        self.digest = digest
        self.errors = tuple(errors)


class ManifestReferencesUnknown(ManifestVerification):
    """A manifest that only lacks what it refers to: all of its `errors` are `ManifestBlobUnknown`."""


class ManifestBlobUnknown(LayerfsError):
    """A manifest refers to a blob, or to another manifest, that is not in its repository."""

    def __init__(self, digest: object) -> None:
        super().__init__(f"{digest} is not in this repository")
        self.digest = digest


class ManifestNotHere(LayerfsError):
    """A manifest that is to be tagged, or listed without a tag, is neither in its repository nor put together with it.

    Nothing was changed. `tag` is the first that it was to have, None if it was to have none.
    """

    def __init__(self, name: str, digest: object, tag: str | None = None) -> None:
        purpose = "listed" if tag is None else f"tagged {tag!r}"
        super().__init__(f"manifest {digest} cannot be {purpose}: it is not in repository {name!r}; push it first")
        self.name = name
        self.digest = digest
        self.tag = tag


class ManifestReferencesTooMany(LayerfsError):
    """Manifests that refer to more manifests, or through more levels of them, than are followed."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"not all that the manifests of repository {name!r} refer to can be followed: {reason}")
        self.name = name
        self.reason = reason


class ManifestMissingUrl(LayerfsError):
    """A foreign layer that does not say where it is to be had."""

    def __init__(self, digest: object) -> None:
        super().__init__(f"layer {digest} has no url")
        self.digest = digest


class ManifestInvalidUrl(LayerfsError):
    """A layer with a url that is not allowed (none is, unless the registry says so)."""

    def __init__(self, digest: object, url: str, reason: str) -> None:
        super().__init__(f"layer {digest} has url {url[:200]!r}: {reason}")
        self.digest = digest
        self.url = url


class ManifestNameInvalid(InvalidName):
    """A schema 1 manifest with a name or tag in it that the grammar does not allow."""

    kind = "name or tag in the manifest"


class ManifestUnverified(LayerfsError):
    """A schema 1 manifest without a signature, or with one that is not of these bytes."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"unverified manifest: {reason}")
        self.reason = reason


class SignatureUnsupported(LayerfsError):
    """Signatures cannot be verified, because what that needs is not installed."""


# --- view ----------------------------------------------------------------------------------------------------


class ViewError(LayerfsError):
    """Base of what the tree refuses in the words of a file system; the message is the reason."""


class NoSuchEntry(ViewError):
    """No such name in the directory."""


class EntryExists(ViewError):
    """The name is taken."""


class NotPermitted(ViewError):
    """The tree never allows this, or only on a mount made with another option."""


class ReadOnlyMount(ViewError):
    """The mount was made read-only."""


class IsDirectory(ViewError):
    """A file operation on a directory."""


class IsNotDirectory(ViewError):
    """A directory operation on something else."""


class InvalidArgument(ViewError):
    """Arguments that have no meaning here (a name that is no digest, a hole in an append-only upload)."""


class NameTooLong(ViewError):
    """More than 255 bytes."""


class UploadLimit(ViewError):
    """As many uploads are open as this mount allows."""


class HandleLimit(ViewError):
    """As many files are open as this mount allows."""


class BadHandle(ViewError):
    """A file handle that is closed, or was not opened for this."""


class StaleInode(ViewError):
    """An inode number that this mount does not know (any more)."""


class StaleName(ViewError):
    """What a name meant when it was looked up is not there any more: it has to be looked up again."""


class UnknownAttribute(ViewError):
    """No extended attribute of this name."""


class UnsupportedAttribute(ViewError):
    """A namespace of extended attributes that the tree does not have."""


class DeadlineExceeded(ViewError):
    """The operation took longer than any operation may (`--operation-timeout`)."""


class OperationInterrupted(ViewError):
    """Whoever asked for the operation was killed while it waited."""
