"""Reading what is in an object store through mounts: with how many requests, and what is read."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from harness.images import digest
from harness.mount import Mount

from layerfs.registry import Registry

MEBIBYTE = 1 << 20

Mounts = Callable[..., Mount]
Payload = Callable[[int], bytes]


def test_an_upload_is_read_ahead(mountable, mounts: Mounts, payload: Payload) -> None:
    """Whoever reads an upload in small pieces, as `cmp` does, costs a few requests, and not one for each piece."""
    content = payload(4 * MEBIBYTE + 1)
    mount = mounts(mountable.url, "--create")
    upload = mount.path / "a/_uploads/layer.tar"
    os.makedirs(mount.path / "a")
    upload.write_bytes(content)
    mountable.forget()
    descriptor = os.open(upload, os.O_RDONLY)
    try:
        assert b"".join(iter(lambda: os.read(descriptor, 4096), b"")) == content
        assert len(mountable.relay.seen) <= 30
        # It is not believed to have ended: what is appended meanwhile is read, too.
        with upload.open("ab") as file:
            file.write(b"more")
        assert os.read(descriptor, 4096) == b"more"
    finally:
        os.close(descriptor)


def test_one_upload_more_costs_what_the_first_has_cost(mountable, mounts: Mounts) -> None:
    """However many there are already, as long as what is known of those is fresh."""
    mount = mounts(mountable.url, "--create", "--metadata-ttl", "60")
    uploads = mount.path / "a/_uploads"
    os.makedirs(mount.path / "a")
    costs = []
    for number in range(12):
        mountable.forget()
        (uploads / f"layer-{number}").write_bytes(b"content")
        costs.append(len(mountable.relay.seen))
    # The first finds out that there are none.
    assert max(costs[2:]) <= costs[0]


def test_a_listing_of_uploads_follows_what_is_done_here(mountable, mounts: Mounts) -> None:
    """Names and sizes are right at once, whatever was listed a moment ago."""
    mount = mounts(mountable.url, "--create", "--metadata-ttl", "60")
    repository = mount.path / "a"
    uploads = repository / "_uploads"
    os.makedirs(repository)

    def listed() -> dict[str, int]:
        return {entry.name: entry.stat().st_size for entry in os.scandir(uploads)}

    assert listed() == {}
    (uploads / "one").write_bytes(b"1")
    (uploads / "two").write_bytes(b"22")
    assert listed() == {"one": 1, "two": 2}
    with (uploads / "one").open("ab") as file:
        file.write(b"11")
        file.flush()
        assert listed() == {"one": 3, "two": 2}
    assert listed() == {"one": 3, "two": 2}
    os.rename(uploads / "one", uploads / "three")
    assert listed() == {"three": 3, "two": 2}
    os.rename(uploads / "three", uploads / "two")
    assert listed() == {"two": 3}
    (uploads / "four").write_bytes(b"4444")
    os.rename(uploads / "two", repository / "_layers" / digest(b"111"))
    assert listed() == {"four": 4}
    os.remove(uploads / "four")
    assert listed() == {}
    assert os.listdir(repository / "_layers") == [digest(b"111")]


async def test_what_uploads_are_called_is_read_once(place) -> None:
    """A second listing is one request, and sees at once what is called otherwise, is longer, or has gone."""
    driver = place.driver()
    directory = "/docker/registry/v2/repositories/a/_uploads"
    for number in range(10):
        await driver.put_content(f"{directory}/{number}/startedat", b"2026-01-01T00:00:00Z")
        await driver.put_content(f"{directory}/{number}/layerfs-name", b"layer-%d" % number)
        await driver.put_content(f"{directory}/{number}/data", b"x" * number)
    await driver.put_content(f"{directory}/ghost/hashstates/sha256/3", b"state")
    uploads = (await Registry.open(driver, create=True)).repository("a").layers
    named = {f"layer-{number}": number for number in range(10)}
    assert {info.file_name: info.size for info in await uploads.uploads()} == named
    place.forget()
    assert {info.file_name: info.size for info in await uploads.uploads()} == named
    assert len(place.relay.seen) == 1
    await driver.put_content(f"{directory}/3/layerfs-name", b"another-3")
    await driver.delete(f"{directory}/4")
    await driver.put_content(f"{directory}/5/data", b"x" * 55)
    await driver.delete(f"{directory}/6/data")
    expected = {name: size for name, size in named.items() if size not in (3, 4)}
    expected |= {"another-3": 3, "layer-5": 55, "layer-6": 0}
    assert {info.file_name: info.size for info in await uploads.uploads()} == expected


async def test_names_that_no_file_system_has_are_not_listed(place) -> None:
    """A key can have 1,024 bytes without a slash; whoever were shown such a name could not ask for it."""
    driver = place.driver()
    for name in ("a" * 255, "b" * 256):
        await driver.put_content(f"/files/{name}", b"")
        await driver.put_content(f"/directories/{name}/file", b"")
    assert [entry.name for entry in await driver.list("/files")] == ["a" * 255]
    assert [entry.name for entry in await driver.list("/directories")] == ["a" * 255]
    assert [info.path for info in await driver.list_files("/directories")] == [f"/directories/{'a' * 255}/file"]


async def test_a_name_that_changes_within_a_second_is_seen(place) -> None:
    """The store's times and sizes do not show that it is another one."""
    driver = place.driver()
    directory = "/docker/registry/v2/repositories/a/_uploads/1"
    await driver.put_content(f"{directory}/startedat", b"2026-01-01T00:00:00Z")
    uploads = (await Registry.open(driver, create=True)).repository("a").layers
    for name in ("one", "two", "six"):
        await driver.put_content(f"{directory}/layerfs-name", name.encode())
        assert [info.file_name for info in await uploads.uploads()] == [name]


def test_how_long_uploads_are_comes_with_the_listing(mountable, mounts: Mounts) -> None:
    """`ls -l` asks for nothing of each but once for its name, and when it began."""
    number = 20
    uploads = mounts(mountable.url, "--create").path / "a/_uploads"
    os.makedirs(uploads.parent)
    for index in range(number):
        (uploads / f"layer-{index}").write_bytes(b"x" * index)
    other = mounts(mountable.url, "--metadata-ttl", "60").path / "a/_uploads"
    mountable.forget()
    for _ in range(2):
        assert {entry.name: entry.stat().st_size for entry in os.scandir(other)} == {
            f"layer-{index}": index for index in range(number)
        }
    # The directories above it are looked for.
    assert len(mountable.relay.seen) <= 2 * number + 8, mountable.relay.counts


@pytest.mark.parametrize("was_written_here", [False, True])
def test_a_name_that_another_node_has_freed(mountable, mounts: Mounts, was_written_here: bool) -> None:
    """It can be taken at once, though it was listed a moment ago: by a new file, and by another upload."""
    mount = mounts(mountable.url, "--create", "--metadata-ttl", "60")
    repository = mount.path / "a"
    os.makedirs(repository)
    other = mounts(mountable.url, "--metadata-ttl", "0").path / "a/_uploads"
    os.makedirs(other.parent)
    begun = repository / "_uploads" if was_written_here else other
    for name in ("one", "two", "three"):
        (begun / name).write_bytes(b"content")
    mine = repository / "_uploads"
    assert {entry.name: entry.stat().st_size for entry in os.scandir(mine)} == {"one": 7, "two": 7, "three": 7}
    for name in ("one", "two"):
        os.remove(other / name)
    (mine / "one").write_bytes(b"new")
    os.rename(mine / "three", mine / "two")
    for directory in (mine, other):
        assert {entry.name: entry.stat().st_size for entry in os.scandir(directory)} == {"one": 3, "two": 7}
    os.remove(other / "one")
    with pytest.raises(FileNotFoundError):
        (mine / "one").read_bytes()
