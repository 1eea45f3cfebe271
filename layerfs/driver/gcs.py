"""The driver for Google Cloud Storage.

Distribution's driver has the bytes of an unfinished upload in a resumable upload session, and at `_uploads/<id>/data`
an object that stands for it. Such a session can be read by nobody, is bound to one writer that knows exactly what it
has sent, and ends after a week. So here an upload is an object that grows (`gcs_upload`), and neither can go on with
what the other has begun: a registry does not know our uploads, and says so to its client; we show a registry's upload
with its size and say why it cannot be read or resumed. Everything that is finished is the same for both, and a
registry's purge of old uploads removes ours too.

Finishing has the store rewrite the object to its place, so that no byte comes through this machine again. Nothing is
locked: objects are appended to, read and copied in one generation only, the one that is known.
"""

from __future__ import annotations

import re

from layerfs.driver.gcs_bucket import UPLOAD_TYPE, GcsBucket, GcsObject, session_error
from layerfs.driver.gcs_options import GcsOptions
from layerfs.driver.gcs_upload import GcsUpload
from layerfs.driver.object_driver import ObjectStoreDriver
from layerfs.driver.object_store import ObjectStore
from layerfs.driver.objects import ObjectVersion, StoredObject


class GcsDriver(ObjectStoreDriver):
    """What lies below a prefix in a bucket."""

    def __init__(self, options: GcsOptions) -> None:
        super().__init__("gcs", options.bucket, _Store(GcsBucket(options)))


class _Store(ObjectStore[GcsUpload]):
    _hidden_suffix = re.compile(r"\.\d{20}-[0-9a-f]{32}\.part")

    def __init__(self, bucket: GcsBucket) -> None:
        super().__init__(bucket)
        self._bucket = bucket

    async def _create(self, path: str, found: StoredObject | None) -> GcsUpload:
        assert found is None or isinstance(found, GcsObject)  # noqa: S101 - this bucket's
        generation = found.generation if found is not None else "0"
        created = await self._bucket.put_object(path, b"", content_type=UPLOAD_TYPE, generation=generation)
        return GcsUpload(self._bucket, path, created)

    async def _resume(self, path: str, found: StoredObject) -> GcsUpload:
        return GcsUpload(self._bucket, path, _no_session(path, found))

    async def seal(self, path: str) -> tuple[StoredObject, ObjectVersion]:
        found, version = await super().seal(path)
        return _no_session(path, found), version


def _no_session(path: str, found: StoredObject) -> GcsObject:
    assert isinstance(found, GcsObject)  # noqa: S101 - this bucket's
    if found.is_session:
        raise session_error(path)
    return found
