"""What the bytes in storage mean: repositories, layers, manifests, tags, uploads.

The public Python API, usable without a mount.
"""

from layerfs.registry.blobs import BlobInfo, BlobStore
from layerfs.registry.layer_upload import LayerUpload
from layerfs.registry.layers import Layer, LayerInfo, LayerService
from layerfs.registry.manifests import ManifestInfo, ManifestService
from layerfs.registry.registry import Listing, Registry, Repository
from layerfs.registry.tags import Tag, TagService
from layerfs.registry.upload_info import ListedUpload, UploadInfo

__all__ = [
    "BlobInfo",
    "BlobStore",
    "Layer",
    "LayerInfo",
    "LayerService",
    "LayerUpload",
    "ListedUpload",
    "Listing",
    "ManifestInfo",
    "ManifestService",
    "Registry",
    "Repository",
    "Tag",
    "TagService",
    "UploadInfo",
]
