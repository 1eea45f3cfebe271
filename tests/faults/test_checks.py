"""The checks of the fault tests can fail: each kind of damage, put there by hand, is found."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from harness.bounded import attempt
from harness.damage import damage, state_of, strange_entries
from harness.loopfs import LoopFilesystem
from harness.sha256 import hash_state
from harness.storage import Storage, digest_of
from harness.workload import Promise, broken_promises, content, read_journal

DATA = content("data", 1000)
DIGEST = digest_of(DATA)


@pytest.fixture
def whole(storage: Storage) -> Storage:
    """A storage without damage, with one of everything."""
    storage.put_layer("library/app", DATA)
    storage.put_link("library/app", digest_of(DATA, "sha512"), DIGEST)
    storage.put_upload("library/app", DATA, upload_id="whole", states={"1000": hash_state(DATA), "5": b"old"})
    storage.put_upload("library/app", DATA, upload_id="ghost", started_at=None, states={"1000": b"whatever"})
    assert damage(storage) == []
    assert strange_entries(storage) == []
    return storage


def test_a_short_blob_is_found(whole: Storage) -> None:
    whole.blob(DIGEST).write_bytes(DATA[:-1])
    assert "999 bytes" in damage(whole)[0]


def test_a_link_without_a_blob_is_found(whole: Storage) -> None:
    whole.blob(DIGEST).unlink()
    assert len(damage(whole)) == 2


@pytest.mark.parametrize("text", ["", DIGEST + "\n", DIGEST[:70], digest_of(b"other")])
def test_a_bad_link_is_found(whole: Storage, text: str) -> None:
    whole.put_blob(b"other")
    whole.link("library/app", DIGEST).write_text(text)
    assert len(damage(whole)) == 1


def test_an_alias_of_another_blob_is_found(whole: Storage) -> None:
    other = whole.put_blob(b"other")
    whole.link("library/app", digest_of(DATA, "sha512")).write_text(other)
    assert "another digest" in damage(whole)[0]


def test_a_wrong_hash_state_is_found(whole: Storage) -> None:
    whole.upload("library/app", "whole").joinpath("hashstates/sha256/1000").write_bytes(hash_state(DATA[:-1]))
    assert "not the state" in damage(whole)[0]


def test_a_symbolic_link_is_found(whole: Storage) -> None:
    whole.upload("library/app", "whole").joinpath("link").symlink_to("/etc/passwd")
    assert len(strange_entries(whole)) == 1


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 5000])
def test_states_by_openssl_are_those_in_plain_python(size: int) -> None:
    assert state_of(content("state", size)) == hash_state(content("state", size))


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_power_cut_takes_what_was_not_synced(kind: str, tmp_path: Path) -> None:
    """What was synced is there afterwards; what was not is gone."""
    with LoopFilesystem(tmp_path, kind) as disk:
        for name in ("synced", "lost"):
            (disk.path / name).write_bytes(DATA)
            if name == "synced":
                os.sync()
        disk.cut_power()
        with pytest.raises(OSError, match="error"):
            (disk.path / "after").write_bytes(b"")
        disk.restore_power()
        assert (disk.path / "synced").read_bytes() == DATA
        assert not (disk.path / "lost").exists()


def test_a_frozen_disk_is_thawed_at_the_end(tmp_path: Path) -> None:
    with LoopFilesystem(tmp_path) as disk:
        disk.freeze()
        with pytest.raises(AssertionError, match="no answer"):
            attempt((disk.path / "new").write_bytes, DATA, seconds=0.2)


def test_an_attempt_says_what_came_of_it(tmp_path: Path) -> None:
    assert attempt(len, "four").value == 4
    assert attempt(os.mkdir, tmp_path / "a" / "b").name == "ENOENT"
    with pytest.raises(AssertionError, match="no answer"):
        attempt(time.sleep, 5, seconds=0.1)
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        attempt(divmod, 1, 0)


def test_broken_promises_are_found(tmp_path: Path) -> None:
    """On a plain directory: what is lost, shorter, or other than it was promised."""
    for name in ("_uploads", "_layers"):
        (tmp_path / name).mkdir()
    (tmp_path / "_uploads/short").write_bytes(content("short", 1000)[:500])
    (tmp_path / "_uploads/other").write_bytes(bytes(1000))
    damaged = Promise("damaged", 1000, is_committed=True)
    (tmp_path / "_layers" / damaged.digest).write_bytes(b"")
    promises = [
        Promise("lost", 1000, ["lost"], 600),
        Promise("short", 1000, ["short"], 600),
        Promise("other", 1000, ["other"], 600),
        Promise("uncommitted", 1000, ["uncommitted"], 1000, is_committed=True),
        damaged,
        Promise("made", repository="made/by/mkdir"),
    ]
    assert len(broken_promises(tmp_path, promises)) == len(promises)
    assert broken_promises(tmp_path, [Promise("never", 1000, ["never"])]) == []


def test_a_journal_is_read_back(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.write_text(
        '{"event": "begin", "key": "a", "name": "a", "total": 9}\n'
        '{"event": "saved", "key": "a", "size": 4}\n'
        '{"event": "renaming", "key": "a", "name": "b"}\n'
        '{"event": "failed", "key": "a", "time": 1}\n'
    )
    read = read_journal(journal)
    assert (read.promises[0].names, read.promises[0].saved, len(read.failures)) == (["a", "b"], 4, 1)
