"""Which uploads are purged: the registry's own rules as a table, and where layerfs goes further."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from harness.handmade import REPOSITORIES, UUID, Tree, ago

from layerfs.driver.interface import Contents, Entries, Stats, StorageDriver
from layerfs.driver.local import LocalDriver
from layerfs.driver.memory import MemoryDriver
from layerfs.errors import AccessDenied
from layerfs.registry import Registry
from layerfs.registry.maintenance import FailedUpload, KeptUpload, PurgedUpload, purge_uploads
from layerfs.registry.times import parse_rfc3339

WEEK = timedelta(hours=168)
OTHER = "01890a5d-ac96-774b-bcce-b302099a8057"


async def purge(registry: Registry, **options: object) -> list[PurgedUpload]:
    """Purges as it would be in two hours, when nobody is writing any more, unless another time is given."""
    options = {"now": datetime.now(UTC) + timedelta(hours=2)} | options
    async with aclosing(purge_uploads(registry, **options)) as uploads:
        return [upload async for upload in uploads]


#: What `startedat` holds, and whether a registry purges the upload after a week (facts B.10).
REGISTRY_RULES = [
    ("2001-02-03T04:05:06Z", True),
    ("2001-02-03T04:05:06+02:00", True),
    ("2001-02-03T04:05:06-11:30", True),
    ("2001-02-03T04:05:06.5Z", True),
    ("2001-02-03T04:05:06.123456789Z", True),
    pytest.param(ago(days=8), True, id="8 days ago"),
    pytest.param(ago(days=6), False, id="6 days ago"),
    pytest.param(ago(days=-1), False, id="tomorrow"),
]

#: What a registry does not understand, and therefore keeps for ever.
NO_TIMES = [None, "", "yesterday", "2001-02-03", "2001-02-03T04:05:06Z\n", "2001-02-03T04:05:06", "x" * 5000]


@pytest.mark.parametrize(("started_at", "purged"), REGISTRY_RULES)
async def test_times_are_understood_as_registries_do(
    tree: Tree, registry: Registry, started_at: str, purged: bool
) -> None:
    """Where a registry can tell the age, layerfs purges what it does."""
    directory = await tree.put_upload("team/app", started_at=started_at)
    found = await purge(registry)
    assert [upload.upload for upload in found] == ([UUID] if purged else [])
    assert await tree.exists(directory) is not purged


@pytest.mark.parametrize("started_at", NO_TIMES, ids=repr)
async def test_without_a_usable_startedat_the_last_change_counts(
    tree: Tree, registry: Registry, started_at: str | None
) -> None:
    """A registry keeps these for ever; here they go when nothing was changed for as long as was asked for."""
    directory = await tree.put_upload("team/app", started_at=started_at)
    assert await purge(registry) == []
    now = datetime.now(UTC) + WEEK + timedelta(minutes=1)
    (upload,) = await purge(registry, now=now)
    assert (upload.upload, upload.started_at, upload.size) == (UUID, None, 3)
    assert not await tree.exists(directory)


async def test_ghosts_go_by_their_last_change(tree: Tree, registry: Registry) -> None:
    """What every registry leaves of a cancelled upload, and none removes."""
    directory = await tree.put_upload("team/app", started_at=None, data=None, n0=b"state")
    assert await purge(registry) == []
    assert len(await purge(registry, now=datetime.now(UTC) + WEEK + timedelta(minutes=1))) == 1
    assert not await tree.exists(directory)


async def test_an_empty_directory_goes_by_its_own_last_change(tree: Tree, registry: Registry) -> None:
    """It may be the beginning of an upload; a week later it is not."""
    directory = f"{REPOSITORIES}/team/app/_uploads/{UUID}"
    await tree.driver.make_directory(directory)
    assert await purge(registry) == []
    await purge(registry, now=datetime.now(UTC) + WEEK + timedelta(minutes=1))
    assert not await tree.exists(directory)


async def test_the_same_id_in_two_repositories_is_two_uploads(tree: Tree, registry: Registry) -> None:
    """A registry purges the one that it finds last; each is judged by itself here."""
    await tree.put_upload("team/app", started_at=ago(days=8))
    await tree.put_upload("other", started_at=ago(days=8))
    young = await tree.put_upload("young", started_at=ago(days=1))
    assert [upload.repository for upload in await purge(registry)] == ["other", "team/app"]
    assert await tree.exists(young)


@pytest.mark.parametrize("uuid", ["my-upload", "0123456789abcdef0123456789abcdef", OTHER])
async def test_any_id_is_purged(tree: Tree, registry: Registry, uuid: str) -> None:
    """A registry purges UUIDs only; its route takes more, so more can be there."""
    await tree.put_upload("team/app", started_at=ago(days=8), uuid=uuid)
    assert [upload.upload for upload in await purge(registry)] == [uuid]


async def test_nothing_but_the_upload_is_deleted(tree: Tree, registry: Registry) -> None:
    """Its neighbours, the directory of uploads and the repository stay."""
    await tree.put_upload("team/app", started_at=ago(days=8))
    kept = await tree.put_upload("team/app", started_at=ago(days=1), uuid=OTHER)
    await purge(registry)
    assert await tree.exists(f"{kept}/data")
    assert [layer.digest for layer in await registry.repository("team/app").layers.list()]


async def test_a_dry_run_changes_nothing(tree: Tree, registry: Registry) -> None:
    """And gives what a real one deletes."""
    directory = await tree.put_upload("team/app", started_at=ago(days=8))
    dry = await purge(registry, dry_run=True)
    assert await tree.exists(f"{directory}/data")
    wet = await purge(registry)
    assert [(upload.repository, upload.upload, upload.size) for upload in dry] == [
        (upload.repository, upload.upload, upload.size) for upload in wet
    ]


async def test_an_age_of_zero_takes_all(tree: Tree, registry: Registry) -> None:
    """Whoever says 0 means that nobody is writing."""
    directory = await tree.put_upload("team/app", started_at=ago(seconds=1))
    assert len(await purge(registry, older_than=timedelta(), now=datetime.now(UTC) + timedelta(seconds=1))) == 1
    assert not await tree.exists(directory)


# --- never one that is being written ---------------------------------------------------------------------------------


async def test_one_that_was_just_written_is_kept(tree: Tree, registry: Registry) -> None:
    """It began long ago, but somebody has come back to it within the hour."""
    directory = await tree.put_upload("team/app", started_at=ago(days=8))
    kept: list[KeptUpload] = []
    assert await purge(registry, now=datetime.now(UTC), on_kept=kept.append) == []
    assert [upload.upload for upload in kept] == [UUID]
    assert await tree.exists(f"{directory}/data")


async def test_an_age_below_an_hour_is_idle_time_as_well(tree: Tree, registry: Registry) -> None:
    """Who asks for ten minutes says that ten minutes are long."""
    await tree.put_upload("team/app", started_at=ago(days=8))
    age = timedelta(minutes=10)
    assert await purge(registry, older_than=age, now=datetime.now(UTC) + timedelta(minutes=9)) == []
    assert len(await purge(registry, older_than=age, now=datetime.now(UTC) + timedelta(minutes=11))) == 1


async def test_a_hash_state_that_was_just_written_is_a_sign_of_life(tree: Tree, registry: Registry) -> None:
    """On an object store that is all that can be seen of an upload: its bytes are in parts."""
    await tree.put_upload("team/app", started_at=ago(days=8), data=None, n100=b"state")
    assert await purge(registry, now=datetime.now(UTC)) == []


@pytest.fixture
async def on_disk(tmp_path: Path) -> Tree:
    """A registry on a local disk, where it can be seen who has a file open."""
    driver = LocalDriver(str(tmp_path / "disk"), create=True)
    await Registry.open(driver, create=True)
    return Tree(driver)


async def test_one_that_a_process_has_open_is_kept(on_disk: Tree, tmp_path: Path) -> None:
    """A registry in the middle of a request that takes days."""
    directory = await on_disk.put_upload("team/app", started_at=ago(days=8))
    registry = Registry(on_disk.driver)
    kept: list[KeptUpload] = []
    with open(f"{tmp_path}/disk{directory}/data", "ab"):
        assert await purge(registry, on_kept=kept.append) == []
    assert "open" in kept[0].reason
    assert len(await purge(registry)) == 1


async def test_one_that_a_process_reads_is_purged(on_disk: Tree, tmp_path: Path) -> None:
    """A reader, such as a backup, does not count."""
    directory = await on_disk.put_upload("team/app", started_at=ago(days=8))
    with open(f"{tmp_path}/disk{directory}/data", "rb"):
        assert len(await purge(Registry(on_disk.driver))) == 1


async def test_one_that_this_program_writes_is_kept(on_disk: Tree) -> None:
    """As a mount does: bytes are still to come."""
    registry = Registry(on_disk.driver)
    upload = await registry.repository("team/app").layers.upload()
    await upload.write(b"abc")
    await upload.flush()
    assert await purge(registry, now=datetime.now(UTC) + 2 * WEEK) == []
    await upload.close()


# --- what cannot be looked at ----------------------------------------------------------------------------------------


class Refusing(MemoryDriver):
    """A storage where one thing may not be done at one path."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: tuple[str, str] | None = None

    def _refuse(self, what: str, path: str) -> None:
        if (what, path) == self.refused:
            raise AccessDenied(path, "Permission denied")

    async def list(self, path: str) -> Entries:
        self._refuse("list", path)
        return await super().list(path)

    async def delete(self, path: str) -> None:
        self._refuse("delete", path)
        await super().delete(path)

    async def get_contents(self, paths: Sequence[str], *, limit: int) -> Contents:
        found = await super().get_contents(paths, limit=limit)
        return [self._instead("read", path, content) for path, content in zip(paths, found, strict=True)]

    async def stat_many(self, paths: Sequence[str]) -> Stats:
        found = await super().stat_many(paths)
        return [self._instead("stat", path, info) for path, info in zip(paths, found, strict=True)]

    def _instead(self, what: str, path: str, answer: Any) -> Any:
        return AccessDenied(path, "Permission denied") if (what, path) == self.refused else answer


APP = f"{REPOSITORIES}/team/app"

#: What may not be done, to what, and which uploads cannot be purged because of it.
REFUSALS = [
    ("read", f"{APP}/_uploads/{UUID}/startedat", ("team/app", UUID)),
    ("list", f"{APP}/_uploads/{UUID}", ("team/app", UUID)),
    ("stat", f"{APP}/_uploads/{UUID}/data", ("team/app", UUID)),
    ("delete", f"{APP}/_uploads/{UUID}/data", ("team/app", UUID)),
    ("list", f"{APP}/_uploads", ("team/app", None)),
    ("list", APP, ("team/app", None)),
    ("list", f"{REPOSITORIES}/team", ("team", None)),
]


@pytest.fixture
async def refusing() -> Refusing:
    """An old upload in each of three repositories, and another in the middle one."""
    driver = Refusing()
    await Registry.open(driver, create=True)
    for name in ("before", "team/app", "zebra"):
        await Tree(driver).put_upload(name, started_at=ago(days=8))
    await Tree(driver).put_upload("team/app", started_at=ago(days=8), uuid=OTHER)
    return driver


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(("what", "path", "failed"), REFUSALS)
async def test_one_that_cannot_be_looked_at_keeps_no_other(
    refusing: Refusing, what: str, path: str, failed: tuple[str, str | None], dry_run: bool
) -> None:
    """It is told and stays as it is; all others go."""
    refusing.refused = (what, path)
    told: list[FailedUpload] = []
    found = await purge(Registry(refusing), on_failed=told.append, dry_run=dry_run)
    refused = {("team/app", UUID), ("team/app", OTHER)} if failed[1] is None else {failed}
    if (what, dry_run) == ("delete", True):
        refused = set()
    every = {("before", UUID), ("team/app", UUID), ("team/app", OTHER), ("zebra", UUID)}
    assert {(upload.repository, upload.upload) for upload in found} == every - refused
    assert [(each.repository, each.upload) for each in told] == ([failed] if refused else [])
    assert all(isinstance(each.error, AccessDenied) for each in told)
    refusing.refused = None
    tree = Tree(refusing)
    for name, uuid in every:
        is_there = await tree.exists(f"{REPOSITORIES}/{name}/_uploads/{uuid}/startedat")
        assert is_there is (dry_run or (name, uuid) in refused)


@pytest.mark.parametrize(("what", "path", "failed"), REFUSALS)
async def test_whoever_does_not_want_to_be_told_gets_the_error(
    refusing: Refusing, what: str, path: str, failed: tuple[str, str | None]
) -> None:
    """Nothing that failed looks like success."""
    refusing.refused = (what, path)
    with pytest.raises(AccessDenied):
        await purge(Registry(refusing))


async def test_a_storage_that_cannot_be_looked_at_is_an_error(refusing: Refusing) -> None:
    """And not a registry without uploads."""
    refusing.refused = ("list", REPOSITORIES)
    with pytest.raises(AccessDenied):
        await purge(Registry(refusing), on_failed=[].append)


async def test_an_empty_registry_has_no_uploads(driver: StorageDriver) -> None:
    """Also where nobody has made a repository yet."""
    await driver.make_directory("/docker/registry/v2")
    assert await purge(Registry(driver)) == []


# --- times ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-23T00:06:39Z", datetime(2026, 11, 23, 0, 6, 39, tzinfo=UTC)),
        ("2026-11-23t00:06:39z", datetime(2026, 11, 23, 0, 6, 39, tzinfo=UTC)),
        ("2026-11-23 00:06:39Z", datetime(2026, 11, 23, 0, 6, 39, tzinfo=UTC)),
        ("2026-11-23T00:06:39.25+01:30", datetime(2026, 11, 22, 22, 36, 39, 250000, tzinfo=UTC)),
        ("2026-11-23T00:06:39-00:00", datetime(2026, 11, 23, 0, 6, 39, tzinfo=UTC)),
        ("2016-12-31T23:59:60Z", datetime(2017, 1, 1, tzinfo=UTC)),
        ("2026-02-30T00:00:00Z", None),
        ("2026-11-23T24:00:00Z", None),
        ("2026-11-23T00:06:61Z", None),
        ("2026-11-23T00:06:39+24:00", None),
        ("0000-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00+23:59", None),
        ("9999-12-31T23:59:60Z", None),
        ("2026-11-23T00:06:39Z ", None),
        ("\uff12026-11-23T00:06:39Z", None),
    ],
)
def test_times_of_rfc_3339(text: str, expected: datetime | None) -> None:
    """All of its forms, and nothing that only looks like one."""
    assert parse_rfc3339(text.encode()) == expected
