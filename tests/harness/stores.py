"""Where the storage of a registry is in a test: on this machine, or in an object store that runs here.

Tests look at it and change it behind a mount's back by paths: those of pathlib on this machine, `StoredPath` elsewhere.
The clients are those of botocore and Azure, and plain HTTP for Google; nothing here is the product's.

An unfinished upload (`_uploads/<id>/data`) is not the same everywhere, and all that tests must know of that is here:

* S3: an open multipart upload. It has the size of its parts, and nobody can read them: `ObjectStore.holds` compares.
* Azure: an append blob.
* Google: an object of the type that layerfs gives it. A registry has a session instead, which nobody can go on with.

And everywhere there are no empty directories, and no file can be changed in the middle, or be given another time.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import io
import json
import os
import uuid
from abc import ABC, abstractmethod
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from azure.core.exceptions import ResourceNotFoundError

from harness import azurite, gcs_server, object_stores
from harness.stored_path import StoredFile, StoredPath

#: What layerfs says of an object on Google that is an unfinished upload, and not a registry's beginning of one.
_GCS_UPLOAD_TYPE = "application/x-layerfs-upload"


class Store(ABC):
    """A kind of storage, and where in it a registry can have its own."""

    name: str

    @abstractmethod
    def root(self, directory: Path) -> Path | StoredPath:
        """A place for the storage of a registry that nobody else has; on this machine it is `directory`."""


class Local(Store):
    """Directories of this machine."""

    name = "local"

    def root(self, directory: Path) -> Path:
        return directory


class ObjectStore(Store):
    """A bucket with one prefix for each storage. Keys are absolute in it; what is not there is `FileNotFoundError`."""

    #: What a program needs in its environment to use it.
    environment: dict[str, str]

    def root(self, directory: Path) -> StoredPath:
        return StoredPath(self, f"tests/{uuid.uuid4()}")

    @abstractmethod
    def url(self, prefix: str) -> str:
        """SOURCE, for the storage below a prefix."""

    @abstractmethod
    def list(self, prefix: str) -> dict[str, StoredFile]:
        """What is stored under keys that begin so, unfinished uploads too."""

    @abstractmethod
    def get(self, key: str) -> bytes: ...

    @abstractmethod
    def put(self, key: str, content: bytes) -> None: ...

    @abstractmethod
    def delete(self, key: str) -> None: ...

    @abstractmethod
    def put_upload(self, key: str, content: bytes) -> None:
        """Makes an unfinished upload that holds this, as another node leaves it, of whatever is there."""

    def append(self, key: str, content: bytes) -> None:
        """What another node does that goes on with an unfinished upload."""
        self.put_upload(key, self.get(key) + content)

    def move(self, source: str, target: str) -> None:
        """Makes a file of what is stored elsewhere, in an unfinished upload too."""
        self.put(target, self.get(source))
        self.delete(source)

    def holds(self, key: str, content: bytes) -> bool:
        """Whether exactly this is stored, in an unfinished upload too."""
        return self.get(key) == content


class S3(ObjectStore):
    """Ceph's gateway."""

    name = "s3"

    def __init__(self) -> None:
        self._gateway = object_stores.gateway()
        self._client = self._gateway.client
        self._bucket = {"Bucket": object_stores.BUCKET}
        self.environment = self._gateway.environment

    def url(self, prefix: str) -> str:
        return f"s3://{object_stores.BUCKET}/{prefix}?endpoint_url={self._gateway.endpoint}"

    def list(self, prefix: str) -> dict[str, StoredFile]:
        pages = self._client.get_paginator("list_objects_v2").paginate(**self._bucket, Prefix=prefix)
        found = {
            each["Key"]: StoredFile(each["Size"], each["LastModified"].timestamp(), each["ETag"].strip('"'))
            for page in pages
            for each in page.get("Contents", [])
        }
        for key, upload_id in self._opened(prefix):
            upload = _as_a_file(self._parts(key, upload_id))
            # An object beside the parts is the beginning of what they hold, unless it is longer.
            if key not in found or found[key].size <= upload.size:
                found[key] = upload
        return found

    def get(self, key: str) -> bytes:
        if parts := self._parts_of(key):
            raise io.UnsupportedOperation(f"{key} is {len(parts)} parts, which cannot be read: ask `holds`")
        if parts == []:
            return b""
        return self._object(key)

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(**self._bucket, Key=key, Body=content)

    def delete(self, key: str) -> None:
        for name, upload_id in self._opened(key):
            if name == key:
                self._client.abort_multipart_upload(**self._bucket, Key=key, UploadId=upload_id)
        self._client.delete_object(**self._bucket, Key=key)

    def put_upload(self, key: str, content: bytes) -> None:
        self.delete(key)
        where = {**self._bucket, "Key": key}
        upload_id = self._client.create_multipart_upload(**where)["UploadId"]
        if content:
            self._client.upload_part(**where, UploadId=upload_id, PartNumber=1, Body=content)

    def append(self, key: str, content: bytes) -> None:
        """As a registry goes on after a short part: has an object made of it, and begins again with that."""
        self.put_upload(key, self._completed(key) + content)

    def move(self, source: str, target: str) -> None:
        self.put(target, self._completed(source))
        self.delete(source)

    def _completed(self, key: str) -> bytes:
        """What is stored, after an object was made of what is open."""
        if parts := self._parts_of(key):
            named = [{"PartNumber": part["PartNumber"], "ETag": part["ETag"]} for part in parts]
            for name, upload_id in self._opened(key):
                if name == key and self._parts(key, upload_id) == parts:
                    self._client.complete_multipart_upload(
                        **self._bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": named}
                    )
        return b"" if parts == [] else self._object(key)

    def holds(self, key: str, content: bytes) -> bool:
        parts = self._parts_of(key)
        if parts is None:
            return self._object(key) == content
        rest = io.BytesIO(content)
        read = [hashlib.md5(rest.read(part["Size"])).hexdigest() for part in parts]
        return read == [part["ETag"].strip('"') for part in parts] and not rest.read()

    def _object(self, key: str) -> bytes:
        try:
            content: bytes = self._client.get_object(**self._bucket, Key=key)["Body"].read()
        except self._client.exceptions.NoSuchKey as exc:
            raise FileNotFoundError(key) from exc
        return content

    def _opened(self, prefix: str) -> list[tuple[str, str]]:
        pages = self._client.get_paginator("list_multipart_uploads").paginate(**self._bucket, Prefix=prefix)
        return [(each["Key"], each["UploadId"]) for page in pages for each in page.get("Uploads", [])]

    def _parts_of(self, key: str) -> list[dict[str, Any]] | None:
        """The parts of what is open at a key, if they count and not an object that is longer."""
        file = self.list(key).get(key)
        opened = [upload_id for name, upload_id in self._opened(key) if name == key]
        for upload_id in opened:
            parts = self._parts(key, upload_id)
            if file is not None and _as_a_file(parts).size == file.size:
                return parts
        return None

    def _parts(self, key: str, upload_id: str) -> list[dict[str, Any]]:
        try:
            pages = self._client.get_paginator("list_parts").paginate(**self._bucket, Key=key, UploadId=upload_id)
            return [part for page in pages for part in page.get("Parts", [])]
        except self._client.exceptions.NoSuchUpload:
            return []  # finished or cancelled in the meantime


def _as_a_file(parts: list[dict[str, Any]]) -> StoredFile:
    """What an open upload is: it has the checksum of the object that its parts would make."""
    sums = b"".join(bytes.fromhex(part["ETag"].strip('"')) for part in parts)
    checksum = f"{hashlib.md5(sums).hexdigest()}-{len(parts)}"
    modified = max((part["LastModified"].timestamp() for part in parts), default=0.0)
    return StoredFile(sum(part["Size"] for part in parts), modified, checksum)


class Azure(ObjectStore):
    """Azurite."""

    name = "azure"

    def __init__(self) -> None:
        self._client = azurite.azurite().client
        self.environment = azurite.azurite().environment

    def url(self, prefix: str) -> str:
        return f"az://{azurite.CONTAINER}/{prefix}"

    def list(self, prefix: str) -> dict[str, StoredFile]:
        return {
            each.name: StoredFile(each.size, each.last_modified.timestamp(), self._checksum(each))
            for each in self._client.list_blobs(name_starts_with=prefix)
        }

    def _checksum(self, found: Any) -> str:
        # Of what was appended to there is none.
        known = found.content_settings.content_md5
        return bytes(known).hex() if known else str(found.etag)

    def get(self, key: str) -> bytes:
        try:
            return self._client.download_blob(key).readall()
        except ResourceNotFoundError as exc:
            raise FileNotFoundError(key) from exc

    def put(self, key: str, content: bytes) -> None:
        # What is there may be of the other kind, which is not replaced.
        self.delete(key)
        self._client.upload_blob(key, content)

    def delete(self, key: str) -> None:
        try:
            self._client.delete_blob(key)
        except ResourceNotFoundError:
            return

    def put_upload(self, key: str, content: bytes) -> None:
        self.delete(key)
        blob = self._client.get_blob_client(key)
        blob.create_append_blob()
        if content:
            blob.append_block(content)

    def append(self, key: str, content: bytes) -> None:
        self._client.get_blob_client(key).append_block(content)


class Gcs(ObjectStore):
    """fake-gcs-server."""

    name = "gcs"

    def __init__(self) -> None:
        self._server = gcs_server.gcs_server()
        self.environment = self._server.environment

    def url(self, prefix: str) -> str:
        return f"gs://{gcs_server.BUCKET}/{prefix}"

    def list(self, prefix: str) -> dict[str, StoredFile]:
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            page = json.loads(self._request("GET", f"?prefix={quote(prefix, safe='')}&pageToken={quote(token)}"))
            found += page.get("items", [])
            token = page.get("nextPageToken", "")
            if not token:
                break
        return {
            each["name"]: StoredFile(
                int(each["size"]), datetime.fromisoformat(each["updated"]).timestamp(), each["crc32c"]
            )
            for each in found
        }

    def get(self, key: str) -> bytes:
        return self._request("GET", f"/{quote(key, safe='')}?alt=media")

    def put(self, key: str, content: bytes) -> None:
        self._server.put(key, content, "application/octet-stream")

    def delete(self, key: str) -> None:
        try:
            self._request("DELETE", f"/{quote(key, safe='')}")
        except FileNotFoundError:
            return

    def put_upload(self, key: str, content: bytes) -> None:
        self._server.put(key, content, _GCS_UPLOAD_TYPE)

    def _request(self, method: str, target: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.proxy.port, timeout=60)
        try:
            connection.request(method, f"/storage/v1/b/{gcs_server.BUCKET}/o{target}")
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status == 404:
            raise FileNotFoundError(target)
        assert answer.status < 300, (answer.status, content)
        return content


_STORES: dict[str, type[Store]] = {store.name: store for store in (Local, S3, Azure, Gcs)}


@functools.cache
def open_store(name: str) -> Store:
    """A store by its name in `--stores`, started by whoever asks first. Daemons that are started later can use it."""
    made = _STORES[name]()
    if isinstance(made, ObjectStore):
        os.environ.update(made.environment)
    return made
