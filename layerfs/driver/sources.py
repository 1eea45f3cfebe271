"""What a user writes as SOURCE, and the driver for it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias
from urllib.parse import unquote, urlsplit, urlunsplit

import trio

from layerfs.driver.archive import ArchiveDriver
from layerfs.driver.azure_options import AzureOptions, parse_azure_url
from layerfs.driver.chains import ArchiveSource, check_whole, parse_archive
from layerfs.driver.errnos import translated
from layerfs.driver.extras import missing_extra
from layerfs.driver.gcs_options import GcsOptions, parse_gcs_url
from layerfs.driver.interface import FileReader, StorageDriver
from layerfs.driver.local import LocalDriver
from layerfs.driver.local_reader import CachedReads, LocalReader
from layerfs.driver.memory import MemoryDriver
from layerfs.driver.openat import Descriptor
from layerfs.driver.s3_options import S3Options, parse_s3_url
from layerfs.errors import NotRegularFile, PathNotFound, UnknownSource

#: The options of a driver for an object store.
ObjectStorage: TypeAlias = AzureOptions | GcsOptions | S3Options

#: A path or URL, or the options of a driver.
Storage: TypeAlias = str | ObjectStorage

#: URLs of directories on this machine.
LOCAL_SCHEMES: Final = frozenset({"file", "local"})

#: Threads that read an archive on a local disk.
_ARCHIVE_THREADS: Final = 16

_PARSERS: Final[Mapping[str, Callable[[str], ObjectStorage]]] = {
    "abfs": parse_azure_url,
    "abfss": parse_azure_url,
    "az": parse_azure_url,
    "gcs": parse_gcs_url,
    "gs": parse_gcs_url,
    "s3": parse_s3_url,
    "s3a": parse_s3_url,
    "s3n": parse_s3_url,
    "wasb": parse_azure_url,
    "wasbs": parse_azure_url,
}


def open_driver(source: Storage, *, create: bool = False) -> StorageDriver:
    """The driver for a path, a `file://` URL, `memory://` (empty, and nobody else's), `s3://bucket/prefix`,
    `az://container/prefix` or `gs://bucket/prefix` (what else can be said is in `s3_options`, `azure_options` and
    `gcs_options`), `zip::` or `tar::` before any of these, or another URL that fsspec knows; or for the options of one.

    `create` makes a local directory that is missing. Raises `UnknownSource`, or what the driver raises if it cannot
    reach its storage.
    """
    if not isinstance(source, str):
        return _object_store_driver(source)
    archive = parse_archive(source)
    if archive is not None:
        return _archive_driver(archive)
    if "://" not in source:
        return LocalDriver(_given(source, source), create=create)
    scheme = source.partition("://")[0].lower()
    if not scheme:
        raise UnknownSource(source, "no scheme before ://")
    if scheme in LOCAL_SCHEMES:
        return LocalDriver(_given(_file_url_path(source), source), create=create)
    if scheme == "memory":
        return MemoryDriver()
    if scheme in _PARSERS:
        return _object_store_driver(_PARSERS[scheme](source))
    check_whole(source)
    # Not before it is needed: it takes as long to import as all the rest.
    from layerfs.driver.fsspec import FsspecDriver

    return FsspecDriver(source)


def parse_object_url(url: str) -> ObjectStorage | None:
    """The options in the URL of an object store; None for anything else. Raises `UnknownSource`."""
    parser = _PARSERS.get(url.partition("://")[0].lower()) if "://" in url else None
    return parser(url) if parser else None


def _object_store_driver(options: ObjectStorage) -> StorageDriver:
    match options:
        case AzureOptions():
            return _azure_driver(options)
        case GcsOptions():
            return _gcs_driver(options)
        case S3Options():
            return _s3_driver(options)


def _azure_driver(options: AzureOptions) -> StorageDriver:
    try:
        from layerfs.driver.azure import AzureDriver
    except ImportError as error:
        raise missing_extra("az", "azure", error) from error
    return AzureDriver(options)


def _gcs_driver(options: GcsOptions) -> StorageDriver:
    try:
        from layerfs.driver.gcs import GcsDriver
    except ImportError as error:
        raise missing_extra("gs", "gcs", error) from error
    return GcsDriver(options)


def _s3_driver(options: S3Options) -> StorageDriver:
    try:
        from layerfs.driver.s3 import S3Driver
    except ImportError as error:
        raise missing_extra("s3", "s3", error) from error
    return S3Driver(options)


def _archive_driver(archive: ArchiveSource) -> StorageDriver:
    target = archive.target
    if "://" not in target or target.partition("://")[0].lower() in LOCAL_SCHEMES:
        path = os.path.abspath(_file_url_path(target) if "://" in target else target)

        async def open_file() -> FileReader:
            return await trio.to_thread.run_sync(_open_local_file, path)

        return ArchiveDriver(archive.kind, inside=archive.inside, source=path, open_archive=open_file)
    url, name = _directory_and_name(target)
    shown = f"{url.partition('?')[0]}/{name}"
    driver = open_driver(url)

    async def open_remote_file() -> FileReader:
        try:
            return await driver.open(f"/{name}")
        except PathNotFound as error:
            raise PathNotFound(shown) from error

    return ArchiveDriver(
        archive.kind, inside=archive.inside, source=shown, open_archive=open_remote_file, release=driver.close
    )


def _open_local_file(path: str) -> FileReader:
    """Follows links, because whoever names an archive means what the name leads to."""
    with translated(path):
        descriptor = Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        status = os.fstat(descriptor.number)
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularFile(path)
    return LocalReader(path, descriptor, status.st_size, CachedReads(), trio.CapacityLimiter(_ARCHIVE_THREADS))


def _directory_and_name(url: str) -> tuple[str, str]:
    """The URL of a file, as that of the storage it is in and its name there."""
    parts = urlsplit(url)
    above, _, name = parts.path.rpartition("/")
    if not name:
        raise UnknownSource(f"{parts.scheme}://…", "name the archive itself, and not a directory")
    return urlunsplit(parts._replace(path=above)), name


def _given(path: str, source: str) -> str:
    if not path:
        raise UnknownSource(source, "no directory given")
    return path


def _file_url_path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"}:
        raise UnknownSource(url, f"file://{parts.netloc}/ is on another host; write file:///path")
    if parts.query or parts.fragment:
        # It would be another directory than was meant.
        raise UnknownSource(url, "what follows a ? or # does not belong to the path: write %3F and %23, or no URL")
    return unquote(parts.path)
