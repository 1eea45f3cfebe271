"""The layout of registry storage (facts A.1), against the paths written out, and back again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfs.digest import Digest
from layerfs.driver.interface import check_path
from layerfs.registry import paths
from layerfs.registry.paths import (
    BlobData,
    LayerLink,
    ManifestRevisionLink,
    Place,
    RepositoryDirectory,
    TagCurrentLink,
    TagIndexLink,
    UploadDirectory,
)
from layerfs.tarsum import TarSumDigest

HEX = "ab12" * 16
HEX512 = "cd34" * 32
DIGEST = Digest("sha256", HEX)
DIGEST512 = Digest("sha512", HEX512)
V2 = "/docker/registry/v2"
UUID = "f81d4fae-7dec-4d0a-a765-00a0c91e6bf6"

PLACES = [
    (BlobData(DIGEST), f"{V2}/blobs/sha256/ab/{HEX}/data"),
    (BlobData(DIGEST512), f"{V2}/blobs/sha512/cd/{HEX512}/data"),
    (RepositoryDirectory("a"), f"{V2}/repositories/a"),
    (RepositoryDirectory("library/alpine/edge"), f"{V2}/repositories/library/alpine/edge"),
    (LayerLink("a/b", DIGEST), f"{V2}/repositories/a/b/_layers/sha256/{HEX}/link"),
    (LayerLink("a/b", DIGEST512), f"{V2}/repositories/a/b/_layers/sha512/{HEX512}/link"),
    (LayerLink("a/b", TarSumDigest("", "sha256", HEX)), f"{V2}/repositories/a/b/_layers/tarsum/v0/sha256/{HEX}/link"),
    (LayerLink("a/b", TarSumDigest("v1", "sha256", HEX)), f"{V2}/repositories/a/b/_layers/tarsum/v1/sha256/{HEX}/link"),
    (LayerLink("a", TarSumDigest("dev", "sha256", HEX)), f"{V2}/repositories/a/_layers/tarsum/dev/sha256/{HEX}/link"),
    (ManifestRevisionLink("a/b", DIGEST), f"{V2}/repositories/a/b/_manifests/revisions/sha256/{HEX}/link"),
    (TagCurrentLink("a/b", "v1.0"), f"{V2}/repositories/a/b/_manifests/tags/v1.0/current/link"),
    (TagIndexLink("a/b", "v1.0", DIGEST), f"{V2}/repositories/a/b/_manifests/tags/v1.0/index/sha256/{HEX}/link"),
    (UploadDirectory("a/b", UUID), f"{V2}/repositories/a/b/_uploads/{UUID}"),
]


@pytest.mark.parametrize(("place", "path"), PLACES)
def test_a_place_lies_where_registries_put_it(place: Place, path: str) -> None:
    """Every kind of place has the path that distribution writes, and the path means that place."""
    assert place.path == path
    assert paths.parse(path) == place
    assert check_path(path) == path


def test_what_an_upload_consists_of() -> None:
    """The files of an upload, the registry's and ours; each of them belongs to the upload."""
    upload = UploadDirectory("a/b", UUID)
    base = f"{V2}/repositories/a/b/_uploads/{UUID}"
    parts = {
        upload.data: f"{base}/data",
        upload.started_at: f"{base}/startedat",
        upload.hash_states: f"{base}/hashstates",
        upload.hash_state(70001): f"{base}/hashstates/sha256/70001",
        upload.hash_state(0): f"{base}/hashstates/sha256/0",
        upload.file_name: f"{base}/layerfs-name",
        upload.committing: f"{base}/layerfs-committing",
        upload.durable: f"{base}/layerfs-durable",
    }
    for built, written in parts.items():
        assert built == written
        assert paths.parse(written) == upload


def test_what_a_repository_consists_of() -> None:
    """The directories that make a repository, and the top, which has no name."""
    repository = RepositoryDirectory("a/b")
    assert repository.layers == f"{V2}/repositories/a/b/_layers"
    assert repository.manifests == f"{V2}/repositories/a/b/_manifests"
    assert repository.uploads == f"{V2}/repositories/a/b/_uploads"
    assert RepositoryDirectory("").path == f"{V2}/repositories"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        V2,
        f"{V2}/blobs",
        f"{V2}/repositories",
        f"{V2}/repositories/",
        f"{V2}/blobs/sha256/ab/{HEX}",
        f"{V2}/blobs/sha256/ac/{HEX}/data",
        f"{V2}/blobs/sha256/ab/{HEX[:-1]}/data",
        f"{V2}/blobs/sha256/AB/{HEX.upper()}/data",
        f"{V2}/blobs/md5/d4/d41d8cd98f00b204e9800998ecf8427e/data",
        f"{V2}/blobs/sha256/ab/{HEX}/data/more",
        f"{V2}/blobs/sha256/ab/{HEX}/data\n",
        f"/x{V2}/blobs/sha256/ab/{HEX}/data",
        f"{V2}/repositories/a/_layers",
        f"{V2}/repositories/a/_layers/sha256/{HEX}",
        f"{V2}/repositories/a/_layers/sha256/{HEX}/link.f81d.tmp",
        f"{V2}/repositories/a/_layers/sha256/{HEX[2:]}/link",
        f"{V2}/repositories/a/_layers/sha256/{HEX}/link\n",
        f"{V2}/repositories/a/_layers/tarsum/v2/sha256/{HEX}/link",
        f"{V2}/repositories/a/_layers/tarsum/v1/sha512/{HEX512}/link",
        f"{V2}/repositories/a/_layers/tarsum/v1/sha256/{HEX[2:]}/link",
        f"{V2}/repositories/a/_layers/tarsum/v1/sha256/{HEX.upper()}/link",
        f"{V2}/repositories/a/_layers/tarsum/v1/{HEX}/link",
        f"{V2}/repositories/a/_layers/tarsum/../sha256/{HEX}/link",
        f"{V2}/repositories/_layers/sha256/{HEX}/link",
        f"{V2}/repositories/../_layers/sha256/{HEX}/link",
        f"{V2}/repositories/a/../../b/_layers/sha256/{HEX}/link",
        f"{V2}/repositories/a//b/_layers/sha256/{HEX}/link",
        f"{V2}/repositories/a/_other/x",
        f"{V2}/repositories/a\nb",
        f"{V2}/repositories/a:b/_layers/sha256/{HEX}/link",
        f"{V2}/repositories/a/_manifests/tags/-x/current/link",
        f"{V2}/repositories/a/_manifests/tags/x\ny/current/link",
        f"{V2}/repositories/a/_manifests/tags/../current/link",
        f"{V2}/repositories/a/_manifests/tags/{'x' * 129}/current/link",
        f"{V2}/repositories/a/_manifests/tags/x\ny/index/sha256/{HEX}/link",
        f"{V2}/repositories/a/_uploads",
        f"{V2}/repositories/a/_uploads/",
        f"{V2}/repositories/a/_uploads/..",
        f"{V2}/repositories/a/_uploads/x\ny",
        f"{V2}/repositories/a/_uploads/x y/data",
        f"{V2}/repositories/{'a' * 256}/_layers/sha256/{HEX}/link",
    ],
)
def test_a_path_where_no_registry_puts_anything(path: str) -> None:
    """Hostile and half paths mean nothing."""
    assert paths.parse(path) is None


component = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
name = st.lists(component, min_size=1, max_size=5).map("/".join)
digest = st.one_of(
    st.from_regex(r"[a-f0-9]{64}", fullmatch=True).map(lambda encoded: Digest("sha256", encoded)),
    st.from_regex(r"[a-f0-9]{128}", fullmatch=True).map(lambda encoded: Digest("sha512", encoded)),
)
tag = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True)
place = st.one_of(
    st.builds(BlobData, digest),
    st.builds(RepositoryDirectory, name),
    st.builds(LayerLink, name, digest),
    st.builds(ManifestRevisionLink, name, digest),
    st.builds(TagCurrentLink, name, tag),
    st.builds(TagIndexLink, name, tag, digest),
    st.builds(UploadDirectory, name, st.uuids().map(str)),
)


@given(place)
def test_every_place_comes_back_from_its_path(built: Place) -> None:
    """Building and parsing are inverse, whatever the names."""
    assert paths.parse(built.path) == built


WORDS = (
    "a .. . _layers _manifests _uploads sha256 link data ab blobs tags repositories revisions current index startedat"
)
piece = st.sampled_from([*WORDS.split(" "), "", HEX, "\n", "A:b", "x y"])


@given(st.lists(piece, max_size=9).map(lambda pieces: "/".join([V2, *pieces])))
def test_a_path_means_one_place_or_none(path: str) -> None:
    """Whatever the pieces, a place that comes out builds the same path again, or (upload) one that begins it."""
    found = paths.parse(path)
    if isinstance(found, UploadDirectory):
        assert f"{path}/".startswith(f"{found.path}/")
    elif found is not None:
        assert found.path == path
