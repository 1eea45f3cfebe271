"""Where a storage on Google Cloud Storage is and how it is spoken to: `GcsOptions`, and how it is said in a URL.

    gs://bucket/prefix
    gs://bucket?endpoint_url=http://127.0.0.1:4443

Credentials come from where Google's libraries look (application default credentials): the file that
`GOOGLE_APPLICATION_CREDENTIALS` names, `gcloud auth application-default login`, the service account of the machine.
With an endpoint without TLS, as of an emulator, there are none; `STORAGE_EMULATOR_HOST` is such an endpoint too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

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


@dataclass(frozen=True, slots=True)
class GcsOptions:
    """A storage on Google Cloud Storage. `None` leaves a setting to the environment."""

    bucket: str
    #: Before every name; no slash at either end.
    root_prefix: str = ""
    endpoint_url: str | None = None
    #: The file of a service account or of another kind of credentials, in place of what the environment says.
    credentials_file: str | None = None
    #: The project that pays for requests, of a bucket whose owner does not.
    user_project: str | None = None
    verify_tls: bool = True
    ca_file: str | None = None
    #: Bytes of the parts in which an upload is sent.
    part_size: int = 16 * MEBIBYTE
    #: Parts of one upload that are on their way at a time; more of them are not kept in memory.
    parts_in_flight: int = 4
    #: Seconds without a word after which a request is tried again; three times that is the end of it.
    read_timeout: float = READ_TIMEOUT
    #: Only for programs that have them from elsewhere: what is in such a file.
    credentials: Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_read_timeout(self.read_timeout)
        if not 0 < self.part_size <= 1 << 30:
            raise ValueError(f"part_size must be from 1 to {1 << 30} bytes, not {self.part_size}")
        if self.parts_in_flight < 1:
            raise ValueError(f"parts_in_flight must be at least 1, not {self.parts_in_flight}")


def parse_gcs_url(url: str) -> GcsOptions:
    """The options in a `gs://` or `gcs://` URL. Raises `UnknownSource`, without repeating what may be a secret."""
    return parse_store_url(urlsplit(url), _FORM, GcsOptions)


_FORM: Final = UrlForm(
    kind="bucket",
    names=r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]",
    expected="gs://BUCKET or gs://BUCKET/PREFIX",
    credentials="into a file, and its name into GOOGLE_APPLICATION_CREDENTIALS in the environment",
    parsers={
        "endpoint_url": parse_endpoint_url,
        "credentials_file": parse_text,
        "user_project": parse_text,
        "verify_tls": parse_boolean,
        "ca_file": parse_text,
        "part_size": parse_bytes,
        "parts_in_flight": int,
        "read_timeout": float,
    },
)
