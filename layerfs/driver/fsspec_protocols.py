"""What is known of single protocols of fsspec: what their libraries do badly, or otherwise than the rest."""

from __future__ import annotations

import asyncio
import atexit
import datetime
import ftplib
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

from layerfs.driver.fsspec_store import Info, Store, without_secrets
from layerfs.driver.store_errors import BY_STATUS, UNKNOWN, Network, answered
from layerfs.errors import AccessDenied, BackendFailure, DriverError, PathNotFound, UnknownSource

#: Seconds that a server of files may take for an answer. The libraries wait for ever, or a minute.
_TIMEOUT: Final = 20

#: Of HTTP's own library nothing need be known here: its errors of connections are the system's too.
_NETWORK: Final = Network(
    timeouts=(TimeoutError, asyncio.TimeoutError), errors=(OSError,), trust_advice="set SSL_CERT_FILE"
)


def store_for(url: str) -> Store:
    """Raises `UnknownSource` if no installed library knows the scheme, or what happens on the way to its server."""
    return _KINDS.get(url.partition("://")[0].lower(), Store)(url)


class _Local(Store):
    is_shared = True


class _Http(Store):
    """Only read, and only from a server that shows directories as pages of links and sends ranges of files."""

    needs_host = True

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.query or parts.fragment:
            raise UnknownSource(
                without_secrets(url), "what follows a ? or # does not belong to the address of a directory"
            )
        self._server = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        super().__init__(url)

    def _why_read_only(self) -> str:
        return "over HTTP a storage can only be read"

    def info(self, path: str) -> Info:
        try:
            info = super().info(path)
        except FileNotFoundError as error:
            # It says so of every error.
            meaning = self._error(error.__cause__, path) if error.__cause__ is not None else PathNotFound(path)
            if not isinstance(meaning, PathNotFound) or not self._is_page(path):
                raise meaning from error
            info = {"type": "directory"}
        # HTTP has no directories, but servers redirect who asks for what they show as one to an address that ends so.
        if str(info.get("url", "")).endswith("/"):
            return {**info, "type": "directory"}
        return info

    def _is_page(self, path: str) -> bool:
        """Whether it is a directory of a server that does not redirect."""
        try:
            self.fs.info(f"{self.key(path)}/")
        except FileNotFoundError:
            return False
        return True

    def _entries(self, path: str) -> Sequence[Info]:
        key = self.key(path).rstrip("/")
        found: Sequence[Info] = self.fs.ls(f"{key}/", detail=True)
        # A page has links to other places as well.
        return [entry for entry in found if entry["name"].startswith(f"{key}/")]

    def _read(self, path: str, offset: int, length: int) -> bytes:
        content = super()._read(path, offset, length)
        if len(content) > length:
            raise BackendFailure(path, f"{self._server} sends whole files, and no ranges of them, as reading needs")
        return content

    def _error(self, error: BaseException, path: str) -> DriverError:
        status = getattr(error, "status", None)
        if isinstance(status, int):
            return answered(str(status), BY_STATUS.get(status, UNKNOWN), path, store=self._server)
        return _NETWORK.error(error, path, store=self._server)


class _Webdav(Store):
    is_shared = True

    def _rename(self, source: str, destination: str) -> None:
        # fsspec has it refuse to replace a file; the protocol does not.
        self.fs.client.move(source, destination, overwrite=True)


class _Ftp(Store):
    """One connection, on which one command is given after the other."""

    needs_host = True

    def _options(self) -> Info:
        return {"timeout": _TIMEOUT}

    def check_alive(self) -> None:
        self.fs.ftp.voidcmd("NOOP")

    def close(self) -> None:
        with suppress(Exception):
            self.fs.ftp.close()

    def info(self, path: str) -> Info:
        try:
            return _with_time(super().info(path))
        except FileNotFoundError as error:
            raise _ftp_error(error, path) from error

    def _entries(self, path: str) -> Sequence[Info]:
        try:
            found = super()._entries(path)
        except FileNotFoundError as error:
            raise _ftp_error(error, path) from error
        # Of a file some servers list that file, as if it were in a directory of its name.
        if len(found) == 1 and found[0]["name"].rpartition("/")[2] == path.rpartition("/")[2]:
            self.check_directory(path)
        return found

    def _read(self, path: str, offset: int, length: int) -> bytes:
        """Without the library, which lists the directory before, and reads ahead for nobody."""
        parts: list[bytes] = []
        self.fs.ftp.voidcmd("TYPE I")
        with self.fs.ftp.transfercmd(f"RETR {self.key(path)}", rest=offset) as connection:
            while length > 0 and (part := connection.recv(min(length, 1 << 16))):
                parts.append(part)
                length -= len(part)
        # The server may complain that the rest was not taken.
        with suppress(ftplib.Error):
            self.fs.ftp.voidresp()
        return b"".join(parts)

    def meaning(self, error: BaseException) -> DriverError | None:
        return _ftp_error(error, self.shown) if isinstance(error, ftplib.Error) else None


def _with_time(info: Info) -> Info:
    """With the time of MLSD (RFC 3659), which is in UTC; that of LIST is in any language and time zone."""
    match = re.match(r"\d{14}", info.get("modify", ""))
    if match is None:
        return info
    modified_at = datetime.datetime.strptime(match[0], "%Y%m%d%H%M%S").replace(tzinfo=datetime.UTC)
    return {**info, "mtime": modified_at}


def _ftp_error(error: BaseException, path: str) -> DriverError:
    """What a server has answered where the library says that nothing is there, as it does of every error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ftplib.Error):
            code = f"{cause}"[:3]
            if code == "550":
                return PathNotFound(path)
            return (AccessDenied if code in _FTP_DENIED else BackendFailure)(path, f"the server answered {cause}"[:300])
        cause = cause.__cause__ or cause.__context__
    return PathNotFound(path)


_FTP_DENIED: Final = {"530", "532", "553"}


class _Sftp(Store):
    """paramiko drops the answer to one thread when another reads it: then the first would wait for ever."""

    needs_host = True

    def _options(self) -> Info:
        times = dict.fromkeys(("timeout", "banner_timeout", "auth_timeout"), _TIMEOUT)
        return {**times, "host_key_policy": _known_hosts()}

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.fs.ftp.get_channel().settimeout(_TIMEOUT)

    def meaning(self, error: BaseException) -> DriverError | None:
        import paramiko

        if isinstance(error, paramiko.AuthenticationException):
            return AccessDenied(self.shown, f"{error}")
        return UnknownSource(self.shown, f"{error}") if isinstance(error, _HostNotKnown) else None

    def check_alive(self) -> None:
        self.fs.ftp.normalize(".")

    def info(self, path: str) -> Info:
        # Of a link fsspec tells what it leads to, which may be anywhere on the server.
        info: Info = self.fs._decode_stat(self.fs.ftp.lstat(self.key(path)))
        return info

    def _read(self, path: str, offset: int, length: int) -> bytes:
        """By requests that do not wait for one another, of which each gives 32 KiB."""
        with self.fs.ftp.open(self.key(path), "rb") as file:
            return b"".join(file.readv([(offset, length)]))

    def close(self) -> None:
        with suppress(Exception):
            self.fs.client.close()


class _HostNotKnown(Exception):
    """The key of a server is none that was accepted for it before."""


#: Where OpenSSH has the keys of servers.
_KNOWN_HOSTS: Final = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")


def _known_hosts() -> object:
    """A policy for paramiko: as OpenSSH's with nobody there to ask, and not fsspec's, which takes every key."""
    try:
        import paramiko
    except ImportError:
        # It will be said that it is missing.
        return None
    known = paramiko.HostKeys()
    for file in _KNOWN_HOSTS:
        with suppress(OSError):
            known.load(os.path.expanduser(file))

    class Policy(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]  # paramiko has no types
        def missing_host_key(self, client: object, hostname: str, key: Any) -> None:  # noqa: ARG002 - paramiko's
            if not known.check(hostname, key):
                raise _HostNotKnown(
                    f"the server has the {key.get_name()} key {key.fingerprint}, which {_KNOWN_HOSTS[0]} does not have "
                    f"for {hostname}: if it is the right one, log in by ssh once"
                )

    return Policy()


class _Smb(Store):
    """Its library has the connections, and makes new ones, but logs in only when a filesystem is made.

    It locks each file that it opens against all others unless it is told not to.
    """

    needs_host = True

    def __init__(self, url: str) -> None:
        super().__init__(url)
        import smbclient

        # At the end of the process it would take leave of each server, and wait for one that does not answer.
        atexit.unregister(smbclient.reset_connection_cache)

    def _options(self) -> Info:
        return {"share_access": "rwd", "register_session_retries": 1, "timeout": _TIMEOUT}

    def meaning(self, error: BaseException) -> DriverError | None:
        from smbprotocol.exceptions import LogonFailure, SMBAuthenticationError

        if isinstance(error, LogonFailure | SMBAuthenticationError):
            return AccessDenied(self.shown, "the server does not take these credentials")
        return None

    def check_alive(self) -> None:
        self.fs.info(self.key("/"))

    def _rename(self, source: str, destination: str) -> None:
        # fsspec has it refuse to replace a file; the protocol does not.
        import smbclient
        from fsspec.implementations.smb import _as_unc_path

        smbclient.replace(
            _as_unc_path(self.fs.host, source), _as_unc_path(self.fs.host, destination), port=self.fs._port
        )


_KINDS: Final[dict[str, type[Store]]] = {
    "file": _Local,
    "ftp": _Ftp,
    "http": _Http,
    "https": _Http,
    "local": _Local,
    "memory": _Local,
    "sftp": _Sftp,
    "smb": _Smb,
    "ssh": _Sftp,
    "webdav": _Webdav,
}
