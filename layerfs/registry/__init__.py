"""What the bytes in storage mean: repositories, layers, uploads. The public Python API, usable without a mount."""

from layerfs.registry.blobs import BlobInfo, BlobStore
from layerfs.registry.layers import Layer, LayerInfo, LayerService
from layerfs.registry.registry import Listing, Registry, Repository
from layerfs.registry.uploads import LayerUpload, UploadInfo

__all__ = [
    "BlobInfo",
    "BlobStore",
    "Layer",
    "LayerInfo",
    "LayerService",
    "LayerUpload",
    "Listing",
    "Registry",
    "Repository",
    "UploadInfo",
]
