"""Many uploads through a mount: beginning, listing and removing one costs the same however many there are.

Counted by a proxy, and linear in their number, though what is known of them holds for a second only.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.mount import Mount
from harness.object_stores import BUCKET, S3Server, Stored
from harness.s3_proxy import S3Proxy
from harness.swift import Swift

#: Requests for an upload of a few bytes: two small files, a look whether anything is there (3), begin, its part and a
#: look whether somebody else has stored one, the state of its hash. Then its two small files are read once by whoever
#: lists it.
BEGIN = 9
READ = 2
#: To remove what others have begun: what it is (4), what there is of it (2), and the removal (3).
REMOVE = 9
#: Whatever else is asked of directories, once.
AROUND = 12

LISTINGS = {"ListObjectsV2", "ListMultipartUploads"}


class Cost:
    """The requests that something took, and the seconds."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0
        self.most_at_once = 0

    @property
    def requests(self) -> int:
        return self.counts.total()


@pytest.fixture
def count(proxy: S3Proxy) -> Callable[[], Iterator[Cost]]:
    """Counts what its body asks of the store."""

    @contextmanager
    def counted() -> Iterator[Cost]:
        proxy.forget()
        proxy.most_at_once = 0
        cost, began_at = Cost(), time.monotonic()
        yield cost
        cost.counts, cost.seconds, cost.most_at_once = proxy.counts, time.monotonic() - began_at, proxy.most_at_once

    return counted


@pytest.fixture
def source(server: S3Server, proxy: S3Proxy, prefix: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is mounted, through the proxy."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{prefix}?endpoint_url={proxy.url}"


def listed(directory: Path, *options: str) -> list[str]:
    return subprocess.run(["ls", *options, directory], check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.parametrize("number", [50, pytest.param(1100, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_many_uploads(
    source: str,
    mounts: Callable[..., Mount],
    count: Callable[[], contextmanager[Cost]],
    number: int,
    server: S3Server,
    proxy: S3Proxy,
    stored: Stored,
) -> None:
    """Through one mount they are begun; another one, which knows nothing of them, lists and removes them."""
    # Swift must be asked whether an upload is still open before each request about its parts.
    begin, remove = (BEGIN + 2, REMOVE + 2) if isinstance(server, Swift) else (BEGIN, REMOVE)
    sizes = {f"layer-{index}": index % 7 for index in range(number)}
    # Objects and open uploads come by the thousand.
    pages = 1 + 4 * number // 1000
    here = mounts(source, "--create").path / "a"
    here.mkdir()
    uploads = here / "_uploads"
    with count() as beginning:
        for name, size in sizes.items():
            (uploads / name).write_bytes(b"x" * size)
    most = (begin + READ) * number + AROUND + (beginning.seconds + 1) * pages
    assert beginning.requests <= most, beginning.counts
    # A thousand names are a slow operation where requests are.
    there = mounts(source, "--metadata-ttl", "600", "--slow-operation", "60").path / "a/_uploads"
    with count() as first:
        assert sorted(listed(there)) == sorted(sizes)
    # Nobody has asked how long they are.
    assert first.counts["ListParts"] == 0
    assert first.requests <= READ * number + AROUND + pages, first.counts
    with count() as second:
        assert sorted(listed(there)) == sorted(sizes)
    assert second.requests == 0
    # Long enough for those that are asked at the same time to meet.
    proxy.latency = 0.2
    with count() as long:
        words = [line.split() for line in listed(there, "-l")[1:]]
    proxy.latency = 0.0
    assert {fields[-1]: int(fields[4]) for fields in words} == sizes
    # Each is asked once, many of them at the same time; what has no bytes may be an object.
    empty = sum(1 for size in sizes.values() if not size)
    assert long.counts["ListParts"] == number
    assert long.counts["HeadObject"] <= empty
    assert sum(long.counts[name] for name in LISTINGS) <= 12 * pages
    assert long.most_at_once >= 8
    with count() as again:
        assert len(listed(there, "-l")) == number + 1
    assert again.requests == 0
    with count() as removing:
        subprocess.run(["rm", *(there / name for name in sizes)], check=True)
    assert removing.requests <= (remove + 1) * number + AROUND, removing.counts
    assert listed(there) == []
    assert stored.uploads() == []
    assert [path for path in stored.paths() if "/_uploads/" in path] == []


def test_uploads_that_are_removed_while_what_is_known_of_them_grows_old(
    source: str, mounts: Callable[..., Mount], count: Callable[[], contextmanager[Cost]], stored: Stored
) -> None:
    """Each is asked again how long it is, but not each of the others with it."""
    number = 24
    uploads = mounts(source, "--create", "--metadata-ttl", "0.05").path / "a/_uploads"
    os.makedirs(uploads.parent)
    for index in range(number):
        (uploads / f"layer-{index}").write_bytes(b"x")
    with count() as removing:
        for name in sorted(listed(uploads)):
            os.remove(uploads / name)
    # It is looked up before it is removed; each of these may find that nothing is fresh.
    assert removing.counts["ListParts"] <= 4 * number
    assert stored.uploads() == []
