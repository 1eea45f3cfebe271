"""The driver for S3 and what speaks its protocol: Ceph, MinIO, SeaweedFS, Swift.

It keeps what distribution's driver keeps, so that registries on the same bucket go on with our uploads and we with
theirs. The bytes of an unfinished upload are the parts of an open multipart upload (`s3_upload`); finishing one
completes it and has the store copy the object to its place, so that no byte comes through this machine again.

No feature is relied on that some store lacks. Nothing is locked: that nobody else has changed what is published follows
from the ETags of its parts and of the object.

What a crash leaves of a copy in parts is left to a lifecycle rule of the bucket (AbortIncompleteMultipartUpload). It
must allow more time than uploads are given by whoever purges them: 30 days, say.
"""

from __future__ import annotations

from dataclasses import replace

from layerfs.driver.object_driver import ObjectStoreDriver
from layerfs.driver.s3_options import S3Options
from layerfs.driver.s3_store import Store


class S3Driver(ObjectStoreDriver):
    """What lies below a prefix in a bucket. Its listings of objects do not tell of open uploads."""

    capabilities = replace(ObjectStoreDriver.capabilities, listed_uploads=False)

    def __init__(self, options: S3Options) -> None:
        super().__init__("s3", options.bucket, Store(options))
