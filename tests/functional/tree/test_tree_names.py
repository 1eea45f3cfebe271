"""Repositories and what is in them: what is found, what is listed, and what comes and goes by mkdir and rmdir."""

from __future__ import annotations

import errno

import pytest
from harness.shown import Shown, link
from harness.storage import digest_of

#: What every repository has in it.
OWN = ["_layers", "_manifests", "_oci", "_tags", "_uploads"]

UUID = "9f2d6c1a-4b0e-4c57-8d3f-2a1b0c9d8e7f"


async def test_a_repository_lists_its_directories(shown: Shown) -> None:
    """Those of a repository, and nothing that is ours or the registry's own."""
    assert await shown.list(shown.repository) == OWN


async def test_the_beginning_of_a_name_lists_the_rest(shown: Shown) -> None:
    """A directory that is only a part of names holds repositories, and no `_layers` of its own."""
    beginning, _, name = shown.repository.rpartition("/")
    names = await shown.list(beginning)
    assert name in names
    assert "_layers" not in names


async def test_a_nested_repository(shown: Shown) -> None:
    """A repository lists another one that its name is the beginning of, beside its own directories."""
    await shown.put_layer(b"nested", f"{shown.repository}/edge")
    assert await shown.list(shown.repository) == [*OWN, "edge"]


async def test_layers_of_a_registry(shown: Shown) -> None:
    """What a registry stored is listed by digest, with its exact size."""
    contents = [b"", b"one", b"two" * 1000]
    for content in contents:
        await shown.put_layer(content)
    assert await shown.list(shown.layers) == sorted(digest_of(content) for content in contents)
    for content in contents:
        assert (await shown.stat(shown.layer(digest_of(content)))).size == len(content)


async def test_a_link_that_leads_nowhere(shown: Shown) -> None:
    """It is not listed, and its name is not found."""
    digest = digest_of(b"never stored")
    await shown.put(link(shown.repository, digest), digest.encode())
    assert await shown.list(shown.layers) == []
    with shown.refused(errno.ENOENT):
        await shown.stat(shown.layer(digest))


async def test_a_link_that_leads_elsewhere(shown: Shown) -> None:
    """It would show other content than its name: not listed, and EIO."""
    await shown.put_layer(b"content")
    lie = digest_of(b"other content")
    await shown.put(link(shown.repository, lie), digest_of(b"content").encode())
    assert await shown.list(shown.layers) == [digest_of(b"content")]
    with shown.refused(errno.EIO):
        await shown.stat(shown.layer(lie))


async def test_an_upload_of_a_registry(shown: Shown) -> None:
    """It is shown under its UUID, with the bytes that were received."""
    path = await shown.put_upload(b"received", UUID)
    assert await shown.list(shown.uploads) == [UUID]
    assert (await shown.stat(path)).size == len(b"received")
    assert await shown.read(path) == b"received"


async def test_what_is_left_of_a_cancelled_upload(shown: Shown) -> None:
    """A directory without `startedat` is no upload."""
    await shown.put(f"/docker/registry/v2/repositories/{shown.repository}/_uploads/{UUID}/data", b"left")
    assert await shown.list(shown.uploads) == []
    with shown.refused(errno.ENOENT):
        await shown.stat(shown.upload(UUID))


@pytest.mark.parametrize(
    "name", ["missing", "_layers/missing", "_uploads/missing", "_other", ".hidden", "_layers/sha256:00"]
)
async def test_names_that_are_not_there(shown: Shown, name: str) -> None:
    """Whatever the reason, a name that is not there is ENOENT."""
    with shown.refused(errno.ENOENT):
        await shown.stat(f"{shown.repository}/{name}")


async def test_making_a_repository(shown: Shown) -> None:
    """`mkdir` makes it, empty, known to registries of both generations."""
    name = f"{shown.repository}/new"
    await shown.make_directory(name)
    assert await shown.list(name) == OWN
    await shown.put_layer(b"content", name)
    assert await shown.list(f"{name}/_layers") == [digest_of(b"content")]


async def test_making_a_path_makes_one_repository(shown: Shown) -> None:
    """`mkdir -p a/b`: an `a` that was made for that is no repository any more."""
    name = f"{shown.repository}/a"
    await shown.make_directory(name)
    await shown.make_directory(f"{name}/b")
    assert await shown.list(name) == ["b"]
    assert await shown.list(f"{name}/b") == OWN


async def test_a_repository_that_was_used_is_not_demoted(shown: Shown) -> None:
    """An `a` with an upload in it stays a repository when `a/b` is made."""
    name = f"{shown.repository}/a"
    await shown.make_directory(name)
    await shown.write(f"{name}/_uploads/x", b"x")
    await shown.make_directory(f"{name}/b")
    assert await shown.list(name) == [*OWN, "b"]
    await shown.remove(f"{name}/_uploads/x")


@pytest.mark.parametrize("name", ["Upper", "white space", "-dash", "a..b", "ümlaut"])
async def test_a_name_that_no_repository_may_have(shown: Shown, name: str) -> None:
    """New names follow the strict grammar: EINVAL."""
    with shown.refused(errno.EINVAL):
        await shown.make_directory(f"{shown.repository}/{name}")


async def test_a_repository_that_exists_is_not_made(shown: Shown) -> None:
    """EEXIST."""
    with shown.refused(errno.EEXIST):
        await shown.make_directory(shown.repository)


async def test_removing_an_empty_repository(shown: Shown) -> None:
    """`rmdir` removes what `mkdir` made."""
    name = f"{shown.repository}/new"
    await shown.make_directory(name)
    await shown.remove_directory(name)
    assert not await shown.exists(name)


@pytest.mark.parametrize("content", ["a layer", "an upload", "a repository"])
async def test_removing_a_repository_with_content(shown: Shown, content: str) -> None:
    """ENOTEMPTY, and nothing is lost."""
    name = f"{shown.repository}/new"
    await shown.make_directory(name)
    kept = {"a layer": f"_layers/{digest_of(b'x')}", "an upload": "_uploads/x", "a repository": "nested"}[content]
    if content == "a layer":
        await shown.put_layer(b"x", name)
    elif content == "an upload":
        await shown.write(f"{name}/_uploads/x", b"x")
    else:
        await shown.put_layer(b"x", f"{name}/nested")
    with shown.refused(errno.ENOTEMPTY):
        await shown.remove_directory(name)
    assert await shown.exists(f"{name}/{kept}")


async def test_the_directories_of_a_repository_stay(shown: Shown) -> None:
    """They are neither made nor removed: EPERM."""
    with shown.refused(errno.EPERM):
        await shown.remove_directory(shown.layers)
    with shown.refused(errno.EPERM):
        await shown.make_directory(f"{shown.layers}/new")


async def test_a_repository_is_not_renamed(shown: Shown) -> None:
    """Its blobs are linked by name all over the storage: EPERM."""
    with shown.refused(errno.EPERM):
        await shown.rename(shown.repository, f"{shown.repository}-new")


async def test_a_file_outside_of_layers_and_uploads(shown: Shown) -> None:
    """Files begin uploads, and so belong into `_uploads`: EPERM."""
    with shown.refused(errno.EPERM):
        await shown.write(f"{shown.repository}/file", b"x")
