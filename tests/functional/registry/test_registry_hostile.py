"""Storage in which something else stands where a registry puts a file or a directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.invariants import check_storage, link_path, upload_path
from harness.walk import files_in

from layerfs.digest import Digest
from layerfs.driver.local import LocalDriver
from layerfs.errors import DriverError, LayerfsError, LayerUnknown, LayerUploadUnknown, PathNotFound, RepositoryNotEmpty
from layerfs.registry import Registry

NAME = "a/b"
CONTENT = b"content"
DIGEST = Digest.of(CONTENT)
UUID = "f81d4fae-7dec-4d0a-a765-00a0c91e6bf6"


def symbolic_link(path: Path) -> None:
    """To a directory outside the storage that has content of its own."""
    outside = path.parent / f"{path.name}-outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    path.symlink_to(outside)


def dangling_link(path: Path) -> None:
    path.symlink_to("/nonexistent/somewhere")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def file(path: Path) -> None:
    path.write_bytes(b"a file")


def directory(path: Path) -> None:
    path.mkdir()


THINGS = [symbolic_link, dangling_link, fifo, file, directory]


@pytest.fixture
async def storage(tmp_path: Path) -> Path:
    """A registry with two layers and an upload of a repository."""
    registry = await Registry.open(LocalDriver(str(tmp_path)), create=True)
    layers = registry.repository(NAME).layers
    for content, digest in ((CONTENT, DIGEST), (b"other", Digest.of(b"other", "sha512"))):
        async with await layers.upload() as upload:
            await upload.write(content)
            await upload.finish(digest)
    async with await layers.upload(file_name=UUID) as upload:
        await upload.write(CONTENT)
    return tmp_path


def put(storage: Path, path: str, thing: Callable[[Path], None]) -> None:
    """Replaces what is at `path`."""
    place = Path(f"{storage}{path}")
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    thing(place)


REPOSITORY = f"/docker/registry/v2/repositories/{NAME}"


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize(
    "path",
    [
        link_path(NAME, str(DIGEST)),
        os.path.dirname(link_path(NAME, str(DIGEST))),
        f"/docker/registry/v2/blobs/sha256/{DIGEST.hex[:2]}/{DIGEST.hex}/data",
        f"/docker/registry/v2/blobs/sha256/{DIGEST.hex[:2]}",
    ],
)
async def test_something_else_in_place_of_a_layer(storage: Path, path: str, thing: Callable[[Path], None]) -> None:
    """That layer is unknown, nothing outside is shown, and the others are listed."""
    put(storage, path, thing)
    layers = Registry(LocalDriver(str(storage))).repository(NAME).layers
    if thing is file and path.endswith("/data"):
        return  # a file in place of a file: what its bytes are is not asked when it is read
    with pytest.raises(LayerUnknown):
        await layers.fetch(DIGEST)
    assert DIGEST not in {info.digest for info in await layers.list()}
    assert Digest.of(b"other", "sha512") in {info.digest for info in await layers.list()}


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
async def test_something_else_in_place_of_an_algorithm(
    storage: Path, algorithm: str, thing: Callable[[Path], None]
) -> None:
    """The layers by the other algorithms are listed."""
    put(storage, f"{REPOSITORY}/_layers/{algorithm}", thing)
    listed = {info.digest for info in await Registry(LocalDriver(str(storage))).repository(NAME).layers.list()}
    everything = {DIGEST, Digest.of(b"other"), Digest.of(b"other", "sha512")}
    assert listed == {digest for digest in everything if digest.algorithm != algorithm}


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("path", ["hashstates", "hashstates/sha256", "hashstates/sha256/7", "layerfs-name"])
async def test_something_else_beside_the_data(storage: Path, path: str, thing: Callable[[Path], None]) -> None:
    """Hash states and names are dispensable: the upload is gone on with, and finished."""
    put(storage, upload_path(NAME, UUID, path), thing)
    registry = Registry(LocalDriver(str(storage)), trust_hash_states=True)
    upload = await registry.repository(NAME).layers.resume(UUID)
    await upload.write(b" and more")
    await upload.flush()
    await upload.finish(Digest.of(b"content and more"))
    check_storage(await files_in(registry.driver, "/docker/registry/v2/blobs"))
    assert not Path(f"{storage}{upload_path(NAME, UUID)}").exists()


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("path", ["_layers", "_layers/sha256", "_layers/sha512", "_manifests"])
async def test_something_else_in_the_way_of_finishing(storage: Path, path: str, thing: Callable[[Path], None]) -> None:
    """It works or says what is in the way, never that the upload were missing; and then it can be done again."""
    put(storage, f"{REPOSITORY}/{path}", thing)
    layers = Registry(LocalDriver(str(storage))).repository(NAME).layers
    upload = await layers.resume(UUID)
    digest = Digest.of(CONTENT, "sha512")
    try:
        await upload.finish(digest)
    except DriverError as error:
        assert not isinstance(error, PathNotFound)
        assert error.path.startswith(f"{REPOSITORY}/{path.partition('/')[0]}")
        Path(f"{storage}{REPOSITORY}/{path}").unlink()
        await upload.finish(digest)
    async with await layers.fetch(digest) as layer:
        assert await layer.read() == CONTENT


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("path", ["_uploads", f"_uploads/{UUID}", f"_uploads/{UUID}/startedat"])
async def test_something_else_in_place_of_an_upload(storage: Path, path: str, thing: Callable[[Path], None]) -> None:
    """It is unknown and not listed; a file in place of `startedat` is only a bad time."""
    put(storage, f"{REPOSITORY}/{path}", thing)
    layers = Registry(LocalDriver(str(storage))).repository(NAME).layers
    if thing is file and path.endswith("startedat"):
        assert [info.started_at for info in await layers.uploads()] == [None]
        return
    assert await layers.uploads() == []
    with pytest.raises(LayerUploadUnknown):
        await layers.resume(UUID)


@pytest.mark.parametrize("thing", [symbolic_link, dangling_link, fifo, directory])
async def test_something_else_in_place_of_data(storage: Path, thing: Callable[[Path], None]) -> None:
    """It cannot be written or finished, and can be cancelled; what is outside stays."""
    put(storage, upload_path(NAME, UUID, "data"), thing)
    layers = Registry(LocalDriver(str(storage))).repository(NAME).layers
    upload = await layers.resume(UUID)
    await upload.write(b"x")
    with pytest.raises(LayerfsError):
        await upload.flush()
    await upload.cancel()
    with pytest.raises(LayerUploadUnknown):
        await layers.resume(UUID)


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("path", ["_layers", "_manifests", "_uploads", "other"])
async def test_something_else_in_an_empty_repository(tmp_path: Path, path: str, thing: Callable[[Path], None]) -> None:
    """The catalog is made; the repository is removed only if nothing strange is in it, else it stays whole."""
    registry = await Registry.open(LocalDriver(str(tmp_path)), create=True)
    await registry.create_repository(NAME)
    put(tmp_path, f"{REPOSITORY}/{path}", thing)
    for outside in Path(f"{tmp_path}{REPOSITORY}").glob("*-outside"):
        outside.rename(tmp_path / outside.name)
    assert [name async for name in registry.catalog()] == [NAME]
    if thing is directory and path != "other":
        await registry.remove_repository(NAME)
        return
    with pytest.raises(RepositoryNotEmpty):
        await registry.remove_repository(NAME)
    await registry.demote_repository(NAME)
    left = set(os.listdir(f"{tmp_path}{REPOSITORY}"))
    assert left >= {path}
    for outside in tmp_path.glob("*-outside"):
        assert (outside / "secret").read_bytes() == b"secret"
