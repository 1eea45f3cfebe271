"""What on this machine keeps layerfs from working, and how to mend it: one function for each thing that can be wrong.

Changes nothing, and never touches a mount or a storage that may hang without a limit.
"""

from __future__ import annotations

import errno
import http.client
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import ssl
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

import trio

from layerfs import mountpoint as mountpoints
from layerfs.config import MountConfig
from layerfs.driver.azure_options import AzureOptions
from layerfs.driver.gcs_options import GcsOptions
from layerfs.driver.sources import ObjectStorage, parse_object_url
from layerfs.errors import LayerfsError
from layerfs.registry_config import RegistryConfig
from layerfs.source import Source, SourceUnusable, local_path, open_registry

#: Seconds for a storage to answer.
_BACKEND_LIMIT: Final = 30.0
#: Seconds for one question to an endpoint's clock.
_CLOCK_LIMIT: Final = 5.0

#: Stores refuse requests that are signed by a clock that is further off.
_SKEW_REFUSED: Final = 15 * 60
_SKEW_SUSPICIOUS: Final = 60

#: openat2(2), without which files of a storage cannot be opened safely.
_OLDEST_KERNEL: Final = (5, 6)

#: Parts of a local storage's file system that should be free.
_LEAST_FREE: Final = 0.05

_LOOK_AT_NETWORK: Final = "look at the network between this machine and the storage, and at the endpoint"


class Health(StrEnum):
    """How it is."""

    OK = "ok"
    #: Works, but not everything, or not for long.
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `remedy` says what to do if it is not well."""

    name: str
    health: Health
    explanation: str
    remedy: str | None = None


def _ok(name: str, explanation: str) -> Finding:
    return Finding(name, Health.OK, explanation)


def _warn(name: str, explanation: str, remedy: str) -> Finding:
    return Finding(name, Health.WARN, explanation, remedy)


def _fail(name: str, explanation: str, remedy: str) -> Finding:
    return Finding(name, Health.FAIL, explanation, remedy)


def examine(source: Source | None) -> Iterator[Finding]:
    """Looks at everything, one after the other; at a storage only if one is named.

    To be called while the process has one thread.
    """
    # What forks comes before what starts threads.
    for check in (_kernel, _device, _fusermount, _fuse_conf, _helper, _updatedb, _descriptors, _syslog):
        yield check()
    yield from _stale_mounts()
    yield from _extras()
    if source is None:
        return
    yield from _storage(source)


# --- FUSE -----------------------------------------------------------------------------------------------------------


def _kernel() -> Finding:
    release = platform.release()
    match = re.match(r"(\d+)\.(\d+)", release)
    if match and (int(match[1]), int(match[2])) < _OLDEST_KERNEL:
        oldest = ".".join(map(str, _OLDEST_KERNEL))
        return _fail("kernel", f"Linux {release} has no openat2", f"use Linux {oldest} or newer")
    return _ok("kernel", f"Linux {release}")


def _device() -> Finding:
    try:
        mode = os.stat("/dev/fuse").st_mode
        if not stat.S_ISCHR(mode):
            return _fail("/dev/fuse", "it is not a device", "remove it, and run 'modprobe fuse'")
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        remedy = "run 'modprobe fuse'; in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN"
        return _fail("/dev/fuse", "it does not exist", remedy)
    except PermissionError:
        remedy = (
            "give it the usual mode with 'chmod 666 /dev/fuse' (in a container: --device /dev/fuse), or mount as root"
        )
        return _fail("/dev/fuse", "this user may not open it", remedy)
    except OSError as error:
        return _fail("/dev/fuse", f"it cannot be opened: {error.strerror}", "run 'modprobe fuse'")
    if mode & 0o006 != 0o006:
        remedy = (
            "'chmod 666 /dev/fuse' if other users are to mount: everybody reaches only mounts of his own through it"
        )
        return _warn("/dev/fuse", f"its mode is {stat.S_IMODE(mode):o}: only its owner can mount", remedy)
    return _ok("/dev/fuse", "it can be opened")


def _fusermount() -> Finding:
    name = "fusermount3"
    program = shutil.which(name)
    if program is None:
        message, remedy = "it is not in the PATH", "install the package fuse3"
        return _warn(name, f"{message}: only root can mount", remedy) if _is_root() else _fail(name, message, remedy)
    status = os.stat(program)
    if status.st_uid != 0 or not status.st_mode & stat.S_ISUID:
        message, remedy = f"{program} is not setuid root", f"run 'chmod u+s {program}' as root"
        return _warn(name, f"{message}: only root can mount", remedy) if _is_root() else _fail(name, message, remedy)
    return _ok(name, f"{program} lets ordinary users mount")


def _fuse_conf() -> Finding:
    name = "/etc/fuse.conf"
    if mountpoints.fuse_conf_allows_other(name):
        return _ok(name, "user_allow_other is set: every user may use --allow-other")
    if _is_root():
        return _ok(name, "user_allow_other is not set: only root may use --allow-other")
    return _warn(
        name, "this user may not use --allow-other", "add the line 'user_allow_other' to /etc/fuse.conf, as root"
    )


def _helper() -> Finding:
    for path in ("/sbin/mount.layerfs", "/sbin/fs.d/mount.layerfs", "/sbin/fs/mount.layerfs"):
        if os.access(path, os.X_OK):
            return _ok("mount(8)", f"{path} is there: 'mount -t layerfs' and fstab work")
    return _warn(
        "mount(8)", "there is no /sbin/mount.layerfs: 'mount -t layerfs' and fstab do not work",
        "run 'layerfs install-units' as root",
    )  # fmt: skip


# --- the rest of the machine ----------------------------------------------------------------------------------------


def _updatedb(path: str = "/etc/updatedb.conf") -> Finding:
    name = "updatedb"
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            match = re.search(r'^\s*PRUNEFS\s*=\s*"([^"]*)"', file.read(), re.MULTILINE)
    except OSError:
        return _ok(name, "locate(1) is not installed: nobody reads whole file systems at night")
    if match and mountpoints.FILESYSTEM_TYPE in match[1].lower().split():
        return _ok(name, f"locate(1) leaves {mountpoints.FILESYSTEM_TYPE} alone")
    return _warn(
        name, "locate(1) reads all directories of every mount, once a day",
        f"add {mountpoints.FILESYSTEM_TYPE} to PRUNEFS in {path}",
    )  # fmt: skip


def _descriptors() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    defaults = MountConfig(source="", mountpoint="")
    wanted = defaults.max_handles + defaults.max_uploads
    if hard != resource.RLIM_INFINITY and hard < wanted:
        remedy = "raise the hard limit ('ulimit -Hn', LimitNOFILE= of the unit), or lower --max-handles"
        return _warn("descriptors", f"a process may open {hard} files, fewer than the {wanted} of a mount", remedy)
    return _ok("descriptors", "a mount can open as many files as it allows")


def _syslog() -> Finding:
    if os.path.exists("/dev/log"):
        return _ok("log", "a mount in the background logs to syslog")
    return _warn("log", "there is no syslog: a mount in the background logs nowhere", "use --log-file with --daemon")


def _stale_mounts() -> Iterator[Finding]:
    mounts = [mount for mount in mountpoints.read_mounts() if mount.is_ours and mount.root == "/"]
    for mount in mounts:
        name = f"mount on {mount.path}"
        match mountpoints.ask_errno(mount.path):
            case None:
                remedy = f"kill its daemon, or run 'layerfs umount --lazy {mount.path}'; its log says what it waits for"
                yield _fail(name, f"its daemon does not answer (of {mount.source})", remedy)
            case errno.ENOTCONN | errno.ECONNABORTED:
                yield _fail(name, f"its daemon has died (of {mount.source})", f"run 'layerfs umount {mount.path}'")
            case _:
                yield _ok(name, f"it answers (of {mount.source})")
    if not mounts:
        yield _ok("mounts", "there are none of layerfs")


# --- packages -------------------------------------------------------------------------------------------------------

#: What each extra is for.
_EXTRAS: Final[Mapping[str, str]] = {
    "azure": "storage on Azure",
    "gcs": "storage on Google Cloud",
    "http": "storage on a web server",
    "journal": "fields in systemd's journal",
    "metrics": "metrics for Prometheus",
    "redis": "a cache that registries share",
    "s3": "storage on S3",
    "schema1": "manifests of before 2016",
    "sftp": "storage on a server by SSH",
    "smb": "storage on a Windows share",
    "urls": "rules for the urls of layers",
    "webdav": "storage on a WebDAV server",
}


def _extras() -> Iterator[Finding]:
    requirements: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("layerfs") or []:
        match = re.match(r"([A-Za-z0-9._-]+).*extra\s*==\s*['\"]([^'\"]+)['\"]", requirement)
        if match and match[2] in _EXTRAS:
            requirements.setdefault(match[2], []).append(match[1])
    for extra, packages in sorted(requirements.items()):
        missing = [package for package in packages if not _is_installed(package)]
        name, use = f"extra {extra}", _EXTRAS[extra]
        if missing:
            yield _ok(name, f"not installed ({', '.join(missing)}); for {use}: pip install 'layerfs[{extra}]'")
        else:
            yield _ok(name, f"installed, for {use}")


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


# --- a storage ------------------------------------------------------------------------------------------------------


def _storage(source: Source) -> Iterator[Finding]:
    yield _backend(source)
    path = local_path(source)
    if path is not None:
        yield from _local_storage(path)
        return
    try:
        options = source.storage if isinstance(source, RegistryConfig) else parse_object_url(source)
    except LayerfsError:
        # The same as for the backend, which has said it.
        return
    if options is not None and not isinstance(options, str):
        yield _clock(endpoint_of(options))


def _backend(source: Source) -> Finding:
    async def open_it() -> None:
        with trio.fail_after(_BACKEND_LIMIT):
            async with open_registry(source, verb="read"):
                pass

    began = time.monotonic()
    try:
        trio.run(open_it)
    except trio.TooSlowError:
        return _fail("storage", f"no answer within {_BACKEND_LIMIT:.0f} s", _LOOK_AT_NETWORK)
    except LayerfsError as error:
        is_away = isinstance(error, SourceUnusable) and not error.is_user_error and local_path(source) is None
        remedy = _LOOK_AT_NETWORK if is_away else "correct SOURCE, its credentials or its permissions"
        return _fail("storage", str(error), remedy)
    return _ok("storage", f"it is a registry's, and answered within {time.monotonic() - began:.2f} s")


def _local_storage(path: str) -> Iterator[Finding]:
    name = "permissions"
    root = os.path.join(path, "docker/registry/v2")
    try:
        status = os.stat(root)
        space = os.statvfs(path)
    except OSError:
        # The backend's finding has said it.
        return
    if os.access(root, os.R_OK | os.W_OK | os.X_OK):
        yield _ok(name, f"this user may read and write {root}")
    else:
        yield _warn(
            name,
            f"this user (uid {os.geteuid()}) may not write {root}, which belongs to uid {status.st_uid}",
            "mount with --read-only, or as the user that the registry runs as",
        )
    free = space.f_bavail * space.f_frsize
    if space.f_blocks and space.f_bavail / space.f_blocks < _LEAST_FREE:
        remedy = "remove what no image needs: 'layerfs purge-uploads', and the registry's garbage collection"
        yield _warn("space", f"{free / 1e9:.1f} GB are free, less than {_LEAST_FREE:.0%}", remedy)
    else:
        yield _ok("space", f"{free / 1e9:.1f} GB are free")


def endpoint_of(options: ObjectStorage) -> str:
    """The URL of the server that requests go to."""
    if options.endpoint_url:
        return options.endpoint_url
    match options:
        case AzureOptions():
            return _azure_endpoint(options)
        case GcsOptions():
            return os.environ.get("STORAGE_EMULATOR_HOST") or "https://storage.googleapis.com"
    variables: Sequence[str] = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    return next((os.environ[name] for name in variables if os.environ.get(name)), "https://s3.amazonaws.com")


def _azure_endpoint(options: AzureOptions) -> str:
    connection = "" if options.account else os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "")
    stated = dict(each.partition("=")[::2] for each in connection.split(";"))
    if "BlobEndpoint" in stated:
        # Without what may be said after the host.
        return "{0.scheme}://{0.netloc}".format(urlsplit(stated["BlobEndpoint"]))
    variables = ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME")
    named = (options.account, stated.get("AccountName"), *map(os.environ.get, variables))
    account = next((name for name in named if name), None)
    realm = stated.get("EndpointSuffix", options.realm)
    return f"https://{account}.blob.{realm}" if account else "https://management.azure.com"


def _clock(endpoint: str) -> Finding:
    """How far the clock of this machine is from that of the storage, as its answers say it."""
    name = "clock"
    began = datetime.now(UTC)
    try:
        theirs = _date_of(endpoint)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _warn(name, f"{endpoint} does not say what time it is: {error}", _LOOK_AT_NETWORK)
    skew = (theirs - began).total_seconds()
    shown = f"{abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'} {endpoint}"
    remedy = "let the clock be set: 'timedatectl set-ntp true', or chrony"
    if abs(skew) > _SKEW_REFUSED:
        return _fail(name, f"it is {shown}: signed requests are refused", remedy)
    if abs(skew) > _SKEW_SUSPICIOUS:
        return _warn(name, f"it is {shown}", remedy)
    return _ok(name, f"it agrees with that of {endpoint}")


def _date_of(endpoint: str) -> datetime:
    parts = urlsplit(endpoint)
    host, port = parts.hostname or "", parts.port
    connection: http.client.HTTPConnection
    if parts.scheme == "http":
        connection = http.client.HTTPConnection(host, port, timeout=_CLOCK_LIMIT)
    else:
        # Nothing secret is sent, and whose the certificate is has been the backend's question.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=_CLOCK_LIMIT, context=context)
    try:
        connection.request("HEAD", "/")
        date = connection.getresponse().getheader("Date")
    finally:
        connection.close()
    if date is None:
        raise ValueError("no Date in its answer")
    return parsedate_to_datetime(date)


def _is_root() -> bool:
    return os.geteuid() == 0
