"""What to do about each error: one table, for `layerfs why`. A test checks that every class of errors has advice.

The reason of an error says what is wrong with which values; the advice says what usually helps, to somebody who did not
write layerfs. A class without a row of its own takes that of its nearest base class, as with errnos.
"""

from __future__ import annotations

from typing import Final

from layerfs import errors

_NAME: Final = "Use another name: the reason says which characters, and how many of them, names here may have."
_CLIENT: Final = "Nothing is wrong with the storage: repair what was written, and write it again."
_DAMAGED: Final = (
    "The storage is damaged there. 'layerfs check SOURCE' lists all that is; pushing the image again heals a blob, "
    "and a link that leads nowhere is made anew by pushing it or goes with 'rm' on a mount with --allow-delete."
)
_BACKEND: Final = (
    "Look whether the storage can be reached from this machine, and at its own log. Everything that was acknowledged "
    "is safe; what failed can be repeated."
)
_NOT_THERE: Final = "Look at the name: 'ls' of the directory above, or 'layerfs ls SOURCE', shows what there is."
_AGAIN: Final = "Look again in a moment: somebody else is at work there."
_BUG: Final = "This is a bug of layerfs. Please report it with the traceback that is in the log."

ADVICE: Final[dict[type[errors.LayerfsError], str]] = {
    # values
    errors.InvalidName: _NAME,
    errors.InvalidRepositoryName: (
        "Use lower-case letters, digits and single separators ('.', '_', '__', '-') between them, components separated "
        "by '/', 255 characters at the most."
    ),
    errors.InvalidTag: "Use letters, digits, '_', '.' and '-' (not '.' or '-' at the beginning), 128 at the most.",
    errors.InvalidUploadId: "Uploads of registries are called by UUIDs: 'ls' of _uploads shows them.",
    errors.InvalidUploadName: "Give the upload another name: no '/', nothing that could not be shown.",
    errors.InvalidDigest: "A digest is written sha256: and 64 hex digits in lower case; sha256sum prints them.",
    errors.InvalidDigestFormat: "A digest is written sha256: and 64 hex digits in lower case; sha256sum prints them.",
    errors.InvalidDigestLength: "The digest is cut off or too long: sha256 has 64 hex digits, sha512 has 128.",
    errors.UnsupportedDigestAlgorithm: "Use a digest that registries know: sha256, or else sha384 or sha512.",
    errors.InvalidTar: "A TarSum is that of a tar archive: upload one, or finish the upload by its sha256 digest.",
    errors.TruncatedTar: (
        "The upload breaks off: send the rest of it (its size is where to go on), then finish it again."
    ),
    errors.InvalidLayout: 'Write an oci-layout file that says {"imageLayoutVersion": "1.0.0"}, or none: it is there.',
    errors.InvalidIndex: _CLIENT,
    # storage driver
    errors.DriverError: _BACKEND,
    errors.PathNotFound: _NOT_THERE,
    errors.InvalidPath: _NAME,
    errors.InvalidOffset: "Append: 'stat -c %s' of the upload says where to go on.",
    errors.NotRegularFile: (
        "Somebody put a directory, link, FIFO or device where the storage should have a file; layerfs never follows "
        "one. Remove it from the storage, then 'layerfs check SOURCE'."
    ),
    errors.PathNotEmpty: "Remove what is in it first.",
    errors.ContentTooLarge: _DAMAGED,
    errors.ShortRead: (
        "The blob is shorter than it was stored. 'layerfs check SOURCE' says which are; push an image that has it "
        "again, and it is replaced by the good copy."
    ),
    errors.ContentChanged: (
        "Another program writes the same file in the storage, such as a registry that goes on with the same upload. "
        "Let one of the two finish, then repeat."
    ),
    errors.StorageFull: (
        "Make room in the storage: 'layerfs purge-uploads SOURCE' removes forgotten uploads, 'layerfs du SOURCE' says "
        "what is large, and a registry's garbage collection removes what no image needs. Then repeat; nothing is half "
        "written."
    ),
    errors.AccessDenied: (
        "The user of the daemon (or its credentials) may not do that in the storage. Give it the permission, or mount "
        "as the user that the registry runs as; expired credentials have to be renewed."
    ),
    errors.StorageReadOnly: "The storage itself is mounted or configured read-only: change that, or only read.",
    errors.BackendFailure: _BACKEND,
    errors.TooManyOpenFiles: "Raise the limit of the daemon (LimitNOFILE= of its unit, or ulimit -n), or close files.",
    errors.UnsupportedByDriver: (
        "This kind of storage cannot do that safely. Uploads there can only be appended to; write to a local file "
        "first and copy it."
    ),
    errors.UnknownSource: "Look at the SOURCE of the mount; the reason says what has to be installed.",
    # registry
    errors.NotARegistry: "Name the root directory of a registry's storage, the one that has docker/registry/v2 in it.",
    errors.RepositoryUnknown: _NOT_THERE,
    errors.RepositoryNotEmpty: "Remove what the reason names first; 'ls' shows it.",
    errors.BlobUnknown: _DAMAGED,
    errors.BlobDamaged: (
        "Storage, or something on the way from it, gave other bytes than were stored. Read again: if it stays so, the "
        "blob is damaged, and 'layerfs check --deep SOURCE' says which are; push the image again to replace it."
    ),
    errors.BlobUnverifiable: (
        "With --verify-reads a layer is fetched into --cache-dir before it is read: make room on that disk, or make "
        "--cache-size larger than the layer."
    ),
    errors.BlobNotVerifiedYet: (
        "With --verify-reads a layer is fetched as a whole before it is read. It is being fetched: read it again "
        "later, fetch large ones beforehand with 'layerfs warm', or give reads more time with --operation-timeout."
    ),
    errors.LinkInvalid: _DAMAGED,
    errors.LinkMismatch: _DAMAGED,
    errors.LayerUnknown: (
        "The repository has no such layer. If the reason says that its link leads nowhere, the blob was lost or "
        "collected as garbage: push the image again. 'layerfs check SOURCE' lists such links."
    ),
    errors.LayerExists: "It is there already: nothing has to be done.",
    errors.LayerUploadUnknown: (
        "The upload was finished, cancelled or purged: begin it again, unless the layer is there now."
    ),
    errors.LayerUploadInvalid: "Remove the upload ('rm'), and begin it again.",
    errors.LayerUploadBusy: (
        "One program writes an upload at a time. Close it where it is open (lsof, fuser), or wait until it is finished."
    ),
    errors.BlobInUse: "Nothing: it may be part of what is just being pushed. Collect garbage again later.",
    errors.LayerInvalidDigest: (
        "The bytes are not those of the digest. Compare with sha256sum of the original: if the upload is incomplete, "
        "append the rest; if it is wrong, remove it and send it again. The upload is unchanged."
    ),
    errors.LayerInvalidLength: "Send the bytes that are missing, or begin again; the upload is unchanged.",
    errors.LayerTarSumVersionUnsupported: "Finish the upload by its sha256 digest.",
    errors.LayerClosed: "Open it again: it was finished or cancelled meanwhile.",
    errors.InvalidManifest: _CLIENT,
    errors.ManifestTooLarge: "Registries take manifests of 4 MiB at the most. Was a layer meant? Those go to _uploads.",
    errors.ManifestInvalidDigest: (
        "Call the manifest by the digest of its exact bytes: sha256sum of the file, not of what a tool prints of it."
    ),
    errors.ManifestUnknown: _NOT_THERE,
    errors.ManifestUnknownRevision: _NOT_THERE,
    errors.TagUnknown: (
        "'ls' of _tags shows the tags. If it was there, it was removed, or its link is damaged: see check."
    ),
    errors.ManifestVerification: (
        "Put what the reason names into the repository first: layers by upload or 'ln' from another repository, "
        "manifests of an index before the index. Nothing has changed."
    ),
    errors.ManifestReferencesUnknown: (
        "Put the blobs that the reason names into this repository first: by upload, or with 'ln' from another "
        "repository. Then put the manifest again."
    ),
    errors.ManifestBlobUnknown: (
        "Put that blob into this repository first, by upload or with 'ln', then the manifest again."
    ),
    errors.ManifestNotHere: "Push that manifest first, then tag it.",
    errors.ManifestReferencesTooMany: "Make indexes that refer to fewer manifests, through fewer levels.",
    errors.ManifestMissingUrl: _CLIENT,
    errors.ManifestInvalidUrl: (
        "Registries refuse layers with urls unless their configuration allows them. Make the image without, or mount "
        "with --config and a validation.manifests.urls.allow that fits."
    ),
    errors.ManifestNameInvalid: _CLIENT,
    errors.ManifestUnverified: "Sign the manifest, exactly as it is, or push it in a format without signatures (OCI).",
    errors.SignatureUnsupported: "pip install 'layerfs[schema1]' where the daemon runs, and mount again.",
    # view
    errors.NoSuchEntry: _NOT_THERE,
    errors.EntryExists: "The name is taken: use another one, or remove what is there first.",
    errors.NotPermitted: (
        "That is never possible here, or only with an option of the mount: layers are removed on a mount with "
        "--allow-delete, and new content goes to _uploads, _manifests, _tags or _oci."
    ),
    errors.ReadOnlyMount: "The mount was made with --read-only (-o ro). Mount again without it to change something.",
    errors.IsDirectory: "It is a directory: name a file in it.",
    errors.IsNotDirectory: "It is a file: name its directory.",
    errors.InvalidArgument: "Look at the reason: that has no meaning here, and nothing was changed.",
    errors.NameTooLong: "Use a name of 255 bytes at the most.",
    errors.UploadLimit: "Finish or close uploads, or mount with a larger --max-uploads.",
    errors.HandleLimit: "Close files (lsof on the mountpoint says who has them), or mount with a larger --max-handles.",
    errors.BadHandle: "Open the file again, for what is to be done with it.",
    errors.StaleInode: "Open it again by its name: the mount is another one by now.",
    errors.StaleName: "Nothing: the kernel looks the name up again by itself.",
    errors.UnknownAttribute: "'getfattr -d' shows the attributes that there are.",
    errors.UnsupportedAttribute: "Only user.layerfs.* attributes exist here, and they can only be read.",
    errors.OperationInterrupted: "Nothing, if it was meant: whoever waited for the storage was killed. Else repeat it.",
    errors.DeadlineExceeded: (
        "The storage did not answer in time, though layerfs is alive. Look whether it can be reached and how busy it "
        "is; --operation-timeout is how long an operation may take."
    ),
}

_BY_NAME: Final = {kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type)}


def advice_for(kind: str) -> str:
    """What to do about an error of the class called `kind`, or about an exception that is none of them."""
    found = _BY_NAME.get(kind)
    if found is not None:
        for base in found.__mro__:
            if base in ADVICE:
                return ADVICE[base]
    return _BUG
