"""The one table of what error is which errno. A test checks that every class of `layerfs.errors` has a row.

A class without a row of its own takes that of its nearest base class; only base classes that nothing raises itself
may lack one.
"""

from __future__ import annotations

import errno
from typing import Final

from layerfs import errors

ERRNOS: Final[dict[type[errors.LayerfsError], int]] = {
    # values
    errors.InvalidName: errno.EINVAL,
    errors.InvalidRepositoryName: errno.EINVAL,
    errors.InvalidTag: errno.EINVAL,
    errors.InvalidUploadId: errno.EINVAL,
    errors.InvalidUploadName: errno.EINVAL,
    errors.InvalidDigest: errno.EINVAL,
    errors.InvalidDigestFormat: errno.EINVAL,
    errors.InvalidDigestLength: errno.EINVAL,
    errors.UnsupportedDigestAlgorithm: errno.EINVAL,
    # What is no tar archive cannot be the content that a TarSum names: the errno of content that does not match.
    errors.InvalidTar: errno.EBADMSG,
    errors.TruncatedTar: errno.EBADMSG,
    errors.InvalidLayout: errno.EINVAL,
    errors.InvalidIndex: errno.EINVAL,
    # storage driver
    errors.DriverError: errno.EIO,
    errors.PathNotFound: errno.ENOENT,
    errors.InvalidPath: errno.EINVAL,
    errors.InvalidOffset: errno.EINVAL,
    errors.NotRegularFile: errno.EIO,
    errors.PathNotEmpty: errno.ENOTEMPTY,
    errors.ContentTooLarge: errno.EFBIG,
    errors.ShortRead: errno.EIO,
    errors.ContentChanged: errno.EBUSY,
    errors.StorageFull: errno.ENOSPC,
    errors.AccessDenied: errno.EACCES,
    errors.StorageReadOnly: errno.EROFS,
    errors.BackendFailure: errno.EIO,
    errors.TooManyOpenFiles: errno.EMFILE,
    errors.UnsupportedByDriver: errno.EOPNOTSUPP,
    errors.UnknownSource: errno.EINVAL,
    # registry
    errors.NotARegistry: errno.EINVAL,
    errors.RepositoryUnknown: errno.ENOENT,
    errors.RepositoryNotEmpty: errno.ENOTEMPTY,
    errors.BlobUnknown: errno.ENOENT,
    errors.BlobDamaged: errno.EIO,
    errors.BlobUnverifiable: errno.EIO,
    errors.BlobNotVerifiedYet: errno.ETIMEDOUT,
    errors.LinkInvalid: errno.EIO,
    errors.LinkMismatch: errno.EIO,
    errors.LayerUnknown: errno.ENOENT,
    errors.LayerExists: errno.EEXIST,
    errors.LayerUploadUnknown: errno.ENOENT,
    errors.LayerUploadInvalid: errno.EINVAL,
    errors.LayerUploadBusy: errno.EBUSY,
    errors.BlobInUse: errno.EBUSY,
    errors.LayerInvalidDigest: errno.EBADMSG,
    errors.LayerInvalidLength: errno.EINVAL,
    errors.LayerTarSumVersionUnsupported: errno.EINVAL,
    errors.LayerClosed: errno.EBADF,
    errors.InvalidManifest: errno.EINVAL,
    errors.ManifestTooLarge: errno.EFBIG,
    errors.ManifestInvalidDigest: errno.EBADMSG,
    errors.ManifestUnknown: errno.ENOENT,
    errors.ManifestUnknownRevision: errno.ENOENT,
    errors.TagUnknown: errno.ENOENT,
    errors.ManifestVerification: errno.EINVAL,
    errors.ManifestReferencesUnknown: errno.ENOLINK,
    errors.ManifestBlobUnknown: errno.ENOLINK,
    errors.ManifestNotHere: errno.ENOLINK,
    errors.ManifestReferencesTooMany: errno.EFBIG,
    errors.ManifestMissingUrl: errno.EINVAL,
    errors.ManifestInvalidUrl: errno.EINVAL,
    errors.ManifestNameInvalid: errno.EINVAL,
    errors.ManifestUnverified: errno.EINVAL,
    errors.SignatureUnsupported: errno.EOPNOTSUPP,
    # view
    errors.NoSuchEntry: errno.ENOENT,
    errors.EntryExists: errno.EEXIST,
    errors.NotPermitted: errno.EPERM,
    errors.ReadOnlyMount: errno.EROFS,
    errors.IsDirectory: errno.EISDIR,
    errors.IsNotDirectory: errno.ENOTDIR,
    errors.InvalidArgument: errno.EINVAL,
    errors.NameTooLong: errno.ENAMETOOLONG,
    errors.UploadLimit: errno.EDQUOT,
    errors.HandleLimit: errno.EMFILE,
    errors.BadHandle: errno.EBADF,
    errors.StaleInode: errno.ESTALE,
    errors.StaleName: errno.ESTALE,
    errors.UnknownAttribute: errno.ENODATA,
    errors.UnsupportedAttribute: errno.EOPNOTSUPP,
    errors.DeadlineExceeded: errno.ETIMEDOUT,
    errors.OperationInterrupted: errno.EINTR,
}


def errno_of(error: errors.LayerfsError) -> int:
    """The errno that a client gets for `error`."""
    for kind in type(error).__mro__:
        if kind in ERRNOS:
            return ERRNOS[kind]
    return errno.EIO


def name_of(number: int) -> str:
    """The errno's name. Python prefers ENOTSUP where the manual pages, and everybody else, say EOPNOTSUPP."""
    return "EOPNOTSUPP" if number == errno.EOPNOTSUPP else errno.errorcode.get(number, str(number))
