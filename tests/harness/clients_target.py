"""A storage that clients write to through a mount, and small images for them to write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from harness.clients_layouts import Image, read_index
from harness.images import OCI_IMAGE, describe, encode, oci_image, oci_index
from harness.mount import Mount
from harness.storage import Storage


class Target:
    """An empty storage with a mount, and images to push there."""

    def __init__(self, storage: Storage, mount: Mount) -> None:
        self.storage = storage
        self.mount = mount

    def layout(self, repository: str) -> Path:
        return self.mount.path / repository / "_oci"

    def new_layout(self, repository: str) -> Path:
        """That of a repository which `mkdir` has made: skopeo, podman and umoci want to see it."""
        self.layout(repository).parent.mkdir(parents=True, exist_ok=True)
        return self.layout(repository)

    def image(self, repository: str, tag: str) -> Image:
        """What the layout has under a tag, whole."""
        [entry] = read_index(self.layout(repository) / "tags" / tag)
        return Image.read(self.layout(repository), entry)


class Images:
    """Small images that no other test has; layers are written in two pieces by whoever writes 32 KiB at a time."""

    def __init__(self, payload: Callable[[int], bytes]) -> None:
        self._payload = payload
        self._count = 0

    def image(self, layers: int = 2) -> Image:
        """An image with so many layers."""
        self._count += 1
        config = json.dumps({"os": "linux", "architecture": "amd64", "number": self._count}).encode()
        content = [self._payload(40_000) for _ in range(layers)]
        return Image.make(encode(oci_image(config, content)), [config, *content])

    def index(self) -> Image:
        """An index of two images with one layer each."""
        children = [self.image(1), self.image(1)]
        manifests = [content for child in children for content in child.manifests.values()]
        blobs = [content for child in children for content in child.blobs.values()]
        return Image.make(encode(oci_index(manifests)), blobs, manifests)

    def artifact(self, subject: Image) -> Image:
        """Something about an image: of a type of its own, with one file and nothing for a configuration."""
        signature = self._payload(300)
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_IMAGE,
            "artifactType": "application/vnd.example.signature",
            "config": describe(b"{}", "application/vnd.oci.empty.v1+json"),
            "layers": [describe(signature, "application/vnd.example.signature")],
            "subject": subject.descriptor,
        }
        return Image.make(encode(manifest), [b"{}", signature])
