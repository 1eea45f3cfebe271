"""Where a storage on Azure is and how it is spoken to: `AzureOptions`, and how it is said in a URL.

    az://container/prefix?account=registrystorage
    abfs://container@registrystorage.dfs.core.windows.net/prefix
    az://container?account=registrystorage&realm=core.chinacloudapi.cn
    az://container?account=devstoreaccount1&endpoint_url=http://127.0.0.1:10000/devstoreaccount1

What is not said, and all credentials, comes from the environment, where Azure's tools look: first a whole
`AZURE_STORAGE_CONNECTION_STRING`; else the account from `AZURE_STORAGE_ACCOUNT` (or `AZURE_STORAGE_ACCOUNT_NAME`) and
`AZURE_STORAGE_KEY` (or `AZURE_STORAGE_ACCOUNT_KEY`) or `AZURE_STORAGE_SAS_TOKEN`; else `DefaultAzureCredential`: a
service principal in the environment, workload identity, managed identity, `az login`. Secrets are never part of a URL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, urlsplit

from layerfs.driver.patience import READ_TIMEOUT, check_read_timeout
from layerfs.driver.url_options import (
    MEBIBYTE,
    UrlForm,
    parse_boolean,
    parse_bytes,
    parse_endpoint_url,
    parse_store_url,
    parse_text,
)
from layerfs.errors import UnknownSource

#: Azure's limits: bytes that one request appends, and how often an append blob can be appended to.
LARGEST_BLOCK: Final = 100 * MEBIBYTE
MOST_BLOCKS: Final = 50_000


#: In whose URLs the host is that of an account, with the container before it.
_HADOOP_SCHEMES: Final = frozenset({"abfs", "abfss", "wasb", "wasbs"})
_EXPECTED: Final = "az://CONTAINER/PREFIX or abfs://CONTAINER@ACCOUNT.dfs.REALM/PREFIX"


@dataclass(frozen=True, slots=True)
class AzureOptions:
    """A storage on Azure. `None` leaves a setting to the environment."""

    container: str
    #: Before every name; no slash at either end.
    root_prefix: str = ""
    account: str | None = None
    #: Of the blob service; by default that of the account in the realm.
    endpoint_url: str | None = None
    #: The cloud: `core.chinacloudapi.cn` and `core.usgovcloudapi.net` are others. As in a registry's configuration.
    realm: str = "core.windows.net"
    verify_tls: bool = True
    ca_file: str | None = None
    #: Bytes of the blocks that an upload begins with; they grow, so that 50,000 are enough. Registries make blocks of
    #: 4 MiB, but blocks are appended one after the other, so small ones spend most of the time on their way.
    block_size: int = 16 * MEBIBYTE
    #: Seconds without a word after which a request is tried again; three times that is the end of it.
    read_timeout: float = READ_TIMEOUT
    #: Only for programs that have them from elsewhere: without these the environment is looked at.
    connection_string: str | None = field(default=None, repr=False)
    account_key: str | None = field(default=None, repr=False)
    sas_token: str | None = field(default=None, repr=False)
    #: A service principal: all three, or none.
    tenant_id: str | None = None
    client_id: str | None = None
    client_secret: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_read_timeout(self.read_timeout)
        if not 0 < self.block_size <= LARGEST_BLOCK:
            raise ValueError(f"block_size must be from 1 to {LARGEST_BLOCK} bytes, not {self.block_size}")
        if len({bool(each) for each in (self.tenant_id, self.client_id, self.client_secret)}) > 1:
            raise ValueError("a service principal is a tenant_id, a client_id and a client_secret")


def parse_azure_url(url: str) -> AzureOptions:
    """The options in an `az://` URL, or one of Hadoop's (`abfs[s]://`, `wasb[s]://`).

    Raises `UnknownSource`, without repeating a secret.
    """
    parts, given = _split_host(urlsplit(url))
    return parse_store_url(parts, _FORM, AzureOptions, given)


def _split_host(parts: SplitResult) -> tuple[SplitResult, dict[str, str]]:
    """The URL with nothing but the container for a host, and what else was in the host."""
    match = re.fullmatch(r"([^@:]+)@([a-z0-9]{3,24})\.(?:dfs|blob)\.([a-z0-9.-]+)", parts.netloc)
    if match is None:
        _check_form(parts)
        return parts, {}
    container, account, realm = match.groups()
    return parts._replace(netloc=container), {"account": account, "realm": realm}


def _check_form(parts: SplitResult) -> None:
    """Raises `UnknownSource` for a container before something that is no account's host; with a `:` it is a login."""
    container, at, _ = parts.netloc.rpartition("@")
    if at and parts.scheme in _HADOOP_SCHEMES and ":" not in container and "@" not in container:
        raise UnknownSource(
            f"{parts.scheme}://{parts.netloc}{parts.path}",
            f"expected {_EXPECTED}, where ACCOUNT is 3 to 24 lower-case letters and digits; "
            "for any other endpoint az://CONTAINER/PREFIX?account=ACCOUNT&endpoint_url=URL",
        )


def _account(text: str) -> str:
    if not re.fullmatch("[a-z0-9]{3,24}", text):
        raise ValueError("expected 3 to 24 lower-case letters and digits")
    return text


def _realm(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", text):
        raise ValueError("expected the end of host names, such as core.windows.net")
    return text


_FORM: Final = UrlForm(
    kind="container",
    # $root and $web are names too, of containers that no registry uses.
    names=r"[a-z0-9](-?[a-z0-9]){2,62}",
    expected=_EXPECTED,
    credentials="where Azure's tools look for them, such as AZURE_STORAGE_CONNECTION_STRING, or "
    "AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY, in the environment",
    parsers={
        "account": _account,
        "endpoint_url": parse_endpoint_url,
        "realm": _realm,
        "verify_tls": parse_boolean,
        "ca_file": parse_text,
        "block_size": parse_bytes,
        "read_timeout": float,
    },
)
