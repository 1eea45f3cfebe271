"""What can be said about a storage on S3, and how it is said in a URL.

    s3://bucket/prefix?endpoint_url=https://rgw.example:7480&region=eu-1&ca_file=/etc/ssl/ceph.pem

The SDK's own settings hold for all that is not said: credentials always come from where it looks for them
(environment, `~/.aws`, web identity, instance), the endpoint from `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL` or its
configuration file, the region likewise. Secrets are never part of a URL, which is seen in `ps` and in shell histories.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from layerfs.driver.patience import READ_TIMEOUT, check_read_timeout
from layerfs.driver.url_options import (
    GIBIBYTE,
    MEBIBYTE,
    UrlForm,
    parse_boolean,
    parse_bytes,
    parse_endpoint_url,
    parse_store_url,
    parse_text,
)

#: S3's limits: of a part (but the last), of a part, of parts in an upload, and of what one request copies.
SMALLEST_PART: Final = 5 * MEBIBYTE
LARGEST_PART: Final = 5 * GIBIBYTE
MOST_PARTS: Final = 10_000
LARGEST_COPY: Final = 5 * GIBIBYTE

#: Up to here one request copies on AWS; above it parts that are copied side by side are faster. Other stores copy
#: within one request by counting references (Ceph: 0.2 s for a GiB, in parts 5.5 s), so there it is the limit itself.
COPY_THRESHOLD_ON_AWS: Final = 64 * MEBIBYTE


@dataclass(frozen=True, slots=True)
class S3Options:
    """A storage on S3. `None` leaves a setting to the SDK, or to what is usual for the endpoint."""

    bucket: str
    #: Before every key; no slash at either end.
    root_prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    #: The name of a profile in the SDK's configuration files.
    profile: str | None = None
    #: Whether the bucket is named in the path of a request and not in its host: by default with every endpoint but AWS.
    path_style: bool | None = None
    verify_tls: bool = True
    ca_file: str | None = None
    #: Bytes up to which an object is copied by a single request.
    multipart_copy_threshold: int | None = None
    #: Bytes of the parts that an upload begins with; they grow, so that 10,000 of them are enough.
    part_size: int = 16 * MEBIBYTE
    #: Parts of one upload that are on their way at a time; more of them are not kept in memory.
    parts_in_flight: int = 4
    #: Seconds without a word after which a request is tried again; three times that is the end of it. Not for copies.
    read_timeout: float = READ_TIMEOUT
    #: The variants of AWS's own endpoints: by IPv6 as well, accelerated, with validated cryptography.
    dual_stack: bool = False
    accelerate: bool = False
    fips: bool = False
    #: How every object is kept, in the words of the API; by default as the bucket says.
    server_side_encryption: str | None = None
    kms_key_id: str | None = None
    storage_class: str | None = None
    acl: str | None = None
    #: Only for programs that have them from elsewhere: without these the SDK finds the credentials itself.
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_read_timeout(self.read_timeout)
        if not SMALLEST_PART <= self.part_size <= LARGEST_PART:
            raise ValueError(f"part_size must be from {SMALLEST_PART} to {LARGEST_PART} bytes, not {self.part_size}")
        if self.multipart_copy_threshold is not None and not 0 < self.multipart_copy_threshold <= LARGEST_COPY:
            raise ValueError(
                f"multipart_copy_threshold must be from 1 to {LARGEST_COPY} bytes, not {self.multipart_copy_threshold}"
            )
        if self.parts_in_flight < 1:
            raise ValueError(f"parts_in_flight must be at least 1, not {self.parts_in_flight}")

    @property
    def object_parameters(self) -> dict[str, str]:
        """What goes with every request that makes an object. A copy does not have it from its original."""
        given = {
            "ServerSideEncryption": self.server_side_encryption,
            "SSEKMSKeyId": self.kms_key_id,
            "StorageClass": self.storage_class,
            "ACL": self.acl,
        }
        return {name: value for name, value in given.items() if value is not None}


def parse_s3_url(url: str) -> S3Options:
    """The options in an `s3://` URL. Raises `UnknownSource`, without repeating what may be a secret."""
    return parse_store_url(urlsplit(url), _FORM, S3Options)


_FORM: Final = UrlForm(
    kind="bucket",
    names=r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}",
    expected="s3://BUCKET or s3://BUCKET/PREFIX",
    credentials="where the AWS SDK looks for them, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the "
    "environment, or ~/.aws/credentials",
    parsers={
        "endpoint_url": parse_endpoint_url,
        "region": parse_text,
        "profile": parse_text,
        "path_style": parse_boolean,
        "verify_tls": parse_boolean,
        "ca_file": parse_text,
        "multipart_copy_threshold": parse_bytes,
        "part_size": parse_bytes,
        "parts_in_flight": int,
        "read_timeout": float,
    },
)
