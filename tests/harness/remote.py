"""The storage of a registry in a bucket of a real gateway, and mounts of it through a proxy that counts and breaks."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from harness.object_stores import BUCKET, RadosGateway
from harness.s3_proxy import S3Proxy, Seen
from harness.storage import digest_of

_V2 = "docker/registry/v2"


class RemoteRegistry:
    """A registry's storage under a prefix of its own; `url` leads to it through `proxy`."""

    def __init__(self, rgw: RadosGateway, proxy: S3Proxy) -> None:
        self.rgw = rgw
        self.proxy = proxy
        self.prefix = f"tests/{uuid.uuid4()}"
        os.environ.update(rgw.environment)
        self.put_all([(f"{_V2}/repositories/.keep", b""), (f"{_V2}/blobs/.keep", b"")])

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}/{self.prefix}?endpoint_url={self.proxy.url}"

    def put_all(self, objects: Iterable[tuple[str, bytes]]) -> None:
        """Stores objects by their keys below the prefix, past the proxy."""
        client = self.rgw.client

        def put(each: tuple[str, bytes]) -> None:
            client.put_object(Bucket=BUCKET, Key=f"{self.prefix}/{each[0]}", Body=each[1])

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(put, objects))

    def delete(self, key: str) -> None:
        self.rgw.client.delete_object(Bucket=BUCKET, Key=f"{self.prefix}/{key}")

    def put_blob(self, content: bytes) -> str:
        digest = digest_of(content)
        self.put_all([(blob_key(digest), content)])
        return digest

    def put_layer(self, repository: str, content: bytes) -> str:
        """A blob and its link, as a registry stores them."""
        digest = self.put_blob(content)
        self.put_all([(link_key(repository, digest), digest.encode())])
        return digest

    # --- what went through the proxy -----------------------------------------------------------------------------

    def gets(self, digest: str) -> list[Seen]:
        """The requests for the content of a blob."""
        seen = list(self.proxy.seen)
        return [each for each in seen if each.operation == "GetObject" and each.key.endswith(blob_key(digest))]

    def listed_prefixes(self) -> list[str]:
        """The directories that were listed, below the prefix of this registry."""
        targets = [each.target for each in list(self.proxy.seen) if each.operation == "ListObjectsV2"]
        prefixes = [re.search(r"[?&]prefix=([^&]*)", target) for target in targets]
        return [found[1].removeprefix(f"{self.prefix}/") for found in prefixes if found is not None]


def blob_key(digest: str) -> str:
    algorithm, _, encoded = digest.partition(":")
    return f"{_V2}/blobs/{algorithm}/{encoded[:2]}/{encoded}/data"


def link_key(repository: str, digest: str) -> str:
    return f"{_V2}/repositories/{repository}/_layers/{digest.replace(':', '/')}/link"


def revision_key(repository: str, digest: str) -> str:
    return f"{_V2}/repositories/{repository}/_manifests/revisions/{digest.replace(':', '/')}/link"


def tag_key(repository: str, tag: str) -> str:
    return f"{_V2}/repositories/{repository}/_manifests/tags/{tag}/current/link"
