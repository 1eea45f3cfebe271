"""A registry on S3, mounted through a proxy that counts, delays and breaks: read fast, right, and in few requests."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.mount import COMMAND, Mount
from harness.object_stores import gateway
from harness.remote import RemoteRegistry, blob_key, link_key, revision_key, tag_key
from harness.s3_proxy import S3Proxy
from harness.storage import Storage, digest_of
from harness.tolerance import forgive_refusals, refusals

KIB, MIB = 1 << 10, 1 << 20

#: More than one page of a listing.
MANY = 1050

#: How many of the same layers other repositories have.
OTHERS = 300
FEW = 100

Mounts = Callable[..., Mount]


@pytest.fixture(scope="module")
def many() -> Iterator[tuple[RemoteRegistry, list[str]]]:
    """A registry with a repository of many layers, and another one with some of them."""
    with S3Proxy(gateway().endpoint) as proxy:
        remote = RemoteRegistry(gateway(), proxy)
        blobs = [f"layer {number}".encode() for number in range(MANY)]
        digests = [digest_of(content) for content in blobs]
        remote.put_all((blob_key(digest), content) for digest, content in zip(digests, blobs, strict=True))
        for repository, count in (("one", MANY), ("other", OTHERS)):
            remote.put_all((link_key(repository, digest), digest.encode()) for digest in digests[:count])
        yield remote, digests


def layer(mount: Mount, digest: str, repository: str = "a") -> Path:
    return mount.path / repository / "_layers" / digest


def payload(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def sizes_in(directory: Path) -> dict[str, int]:
    """What `ls -l` shows."""
    lines = subprocess.run(["ls", "-l", directory], capture_output=True, text=True, check=True).stdout.splitlines()
    return {fields[-1]: int(fields[4]) for fields in map(str.split, lines[1:])}


def wait_kept(cache: Path, *digests: str) -> None:
    """The last bytes of a layer are stored after they were given out."""
    deadline = time.monotonic() + 20
    wanted = {digest.replace(":", "-") for digest in digests}
    while not wanted <= {path.name for path in (cache / "blobs").iterdir()}:
        assert time.monotonic() < deadline, "it was not kept"
        time.sleep(0.02)  # polling interval


# --- listings ---------------------------------------------------------------------------------------------------------


def test_sizes_are_asked_for_once(many: tuple[RemoteRegistry, list[str]], mounts: Mounts) -> None:
    """A long repository is a few listings, of its links and of all blobs; another one with the same blobs is even less;
    and again within the time to live it is nothing at all."""
    remote, digests = many
    expected = {digest: len(f"layer {number}") for number, digest in enumerate(digests)}
    mount = mounts(remote.url, "--metadata-ttl", "3600")
    remote.proxy.forget()
    assert sizes_in(mount.path / "one/_layers") == expected
    counts = remote.proxy.counts
    assert counts["HeadObject"] <= 2
    assert counts["ListObjectsV2"] <= 7
    assert set(counts) <= {"HeadObject", "ListObjectsV2"}
    remote.proxy.forget()
    assert sizes_in(mount.path / "one/_layers") == expected
    assert remote.proxy.counts == {}
    assert sizes_in(mount.path / "other/_layers") == {digest: expected[digest] for digest in digests[:OTHERS]}
    counts = remote.proxy.counts
    assert counts["HeadObject"] <= 2
    assert counts["ListObjectsV2"] <= 3


def test_tags_are_asked_for_once(remote: RemoteRegistry, mounts: Mounts) -> None:
    """With a request for each, side by side, and not again while they are shown; what is changed here is seen at once,
    what others change within the time to live."""
    manifests = [f"sha256:{number:064x}" for number in range(3)]
    tags = {f"v{number}": manifests[number % 3] for number in range(200)}
    remote.put_all((tag_key("a", tag), digest.encode()) for tag, digest in tags.items())
    mount = mounts(remote.url, "--metadata-ttl", "3600", "--allow-delete")
    directory = mount.path / "a/_tags"
    remote.proxy.forget()
    shown = subprocess.check_output(["ls", "-l", directory], text=True).splitlines()[1:]
    assert {line.split()[-3]: line.split()[-1].removeprefix("../_manifests/") for line in shown} == tags
    assert remote.proxy.counts["GetObject"] == len(tags)
    assert remote.proxy.counts["ListObjectsV2"] <= 3
    remote.proxy.forget()
    assert {name: os.readlink(directory / name)[-71:] for name in tags} == tags
    assert remote.proxy.counts == {}
    os.unlink(directory / "v0")
    assert not os.path.lexists(directory / "v0")
    remote.proxy.forget()
    for _ in range(3):
        assert os.readlink(directory / "v1").endswith(manifests[1])
    assert remote.proxy.counts == {"GetObject": 1}
    short = mounts(remote.url, "--metadata-ttl", "0.2")
    assert os.readlink(short.path / "a/_tags/v1").endswith(manifests[1])
    remote.put_all([(tag_key("a", "v1"), manifests[2].encode())])
    time.sleep(0.3)  # the time to live
    assert os.readlink(short.path / "a/_tags/v1").endswith(manifests[2])


def test_reading_a_manifest_costs_one_request(remote: RemoteRegistry, mounts: Mounts) -> None:
    """Once it was listed or looked up: nobody asks again whether it is there."""
    contents = [f'{{"schemaVersion": 2, "number": {number}}}'.encode() for number in range(5)]
    digests = [remote.put_blob(content) for content in contents]
    remote.put_all((revision_key("a", digest), digest.encode()) for digest in digests)
    mount = mounts(remote.url, "--metadata-ttl", "3600")
    directory = mount.path / "a/_manifests"
    assert sorted(os.listdir(directory)) == sorted(digests)
    remote.proxy.forget()
    assert [(directory / digest).read_bytes() for digest in digests] == contents
    assert remote.proxy.counts == {"GetObject": len(digests)}


def test_finishing_costs_few_requests(remote: RemoteRegistry, mounts: Mounts, tmp_path: Path) -> None:
    """Eight, with the look for a layer that would be replaced; no byte comes through here."""
    content = payload(20 * MIB)
    (tmp_path / "layer").write_bytes(content)
    mount = mounts(remote.url, "--create", "--metadata-ttl", "3600")
    (mount.path / "a").mkdir()
    subprocess.run(["cp", tmp_path / "layer", mount.path / "a/_uploads/layer"], check=True)
    remote.proxy.forget()
    subprocess.run(["mv", mount.path / "a/_uploads/layer", mount.path / "a/_layers" / digest_of(content)], check=True)
    counts = remote.proxy.counts
    assert counts.total() <= 8, counts
    assert sum(counts[change] for change in ("CompleteMultipartUpload", "CopyObject", "PutObject")) == 3
    assert remote.proxy.bytes_through < 64 * KIB
    remote.proxy.forget()
    assert str(len(content)) in subprocess.check_output(["ls", "-l", mount.path / "a/_layers"], text=True)
    assert set(remote.proxy.counts) <= {"ListObjectsV2"}, "what was just finished is known"
    assert layer(mount, digest_of(content)).read_bytes() == content


def test_sizes_of_few_among_many_blobs(many: tuple[RemoteRegistry, list[str]], mounts: Mounts) -> None:
    """Are asked for one by one, side by side: listing all the others would take longer."""
    remote, digests = many
    few = digests[:FEW]
    remote.put_all((link_key("few", digest), digest.encode()) for digest in few)
    mount = mounts(remote.url)
    remote.proxy.forget()
    remote.proxy.latency = 0.03
    assert sizes_in(mount.path / "few/_layers") == {digest: len(f"layer {n}") for n, digest in enumerate(few)}
    remote.proxy.latency = 0.0
    assert FEW <= remote.proxy.counts["HeadObject"] <= FEW + 2
    assert remote.proxy.counts["ListObjectsV2"] <= 4
    assert remote.proxy.most_at_once >= 32


def test_after_the_time_to_live_only_names_are_asked_for(
    many: tuple[RemoteRegistry, list[str]], mounts: Mounts
) -> None:
    """Sizes do not change."""
    remote, digests = many
    mount = mounts(remote.url, "--metadata-ttl", "0.1")
    assert len(sizes_in(mount.path / "one/_layers")) == MANY
    time.sleep(0.2)  # the time to live
    remote.proxy.forget()
    assert set(sizes_in(mount.path / "one/_layers")) == set(digests)
    assert not [each for each in remote.proxy.seen if "/blobs/" in each.target]
    assert remote.proxy.counts["ListObjectsV2"] <= 6


def test_what_is_gone_is_not_opened(remote: RemoteRegistry, mounts: Mounts) -> None:
    """A listing may still have it; opening asks storage, and after that listings know."""
    digest, other = remote.put_layer("a", b"content"), remote.put_layer("a", b"other")
    mount = mounts(remote.url, "--metadata-ttl", "0.1")
    assert set(sizes_in(mount.path / "a/_layers")) == {digest, other}
    remote.delete(blob_key(digest))
    time.sleep(0.2)  # the time to live
    os.listdir(mount.path / "a/_layers")
    with pytest.raises(FileNotFoundError):
        layer(mount, digest).read_bytes()
    time.sleep(0.2)  # the time to live
    assert os.listdir(mount.path / "a/_layers") == [other]
    with pytest.raises(FileNotFoundError):
        os.link(layer(mount, digest), mount.path / "b/_layers" / digest)
    forgive_refusals(mount)


def test_links_that_are_none_are_not_listed(remote: RemoteRegistry, mounts: Mounts) -> None:
    """Empty, cut short, too long, of another algorithm without its layer; and what lies beside a link."""
    good = remote.put_layer("a", b"good")
    bad = [remote.put_blob(f"bad {number}".encode()) for number in range(3)]
    remote.put_all(
        [
            (link_key("a", bad[0]), b""),
            (link_key("a", bad[1]), bad[1][:40].encode()),
            (link_key("a", bad[2]), bad[2].encode() + b"x" * 300),
            (link_key("a", digest_of(b"good", "sha512")), good.encode()),
            (link_key("a", digest_of(b"nothing", "sha512")), digest_of(b"nothing").encode()),
            (link_key("a", digest_of(b"nothing at all")), digest_of(b"nothing at all").encode()),
            (link_key("a", digest_of(b"beside")).removesuffix("link") + "other", digest_of(b"beside").encode()),
        ]
    )
    mount = mounts(remote.url)
    listed = set(os.listdir(mount.path / "a/_layers"))
    assert listed == {good, digest_of(b"good", "sha512")}
    for digest in bad:
        assert not layer(mount, digest).exists()


def test_the_catalog_stays_out_of_repositories(remote: RemoteRegistry, mounts: Mounts) -> None:
    """Walking the names lists names: neither what is in repositories, nor the blobs."""
    for name in ("a", "a/b", "c/d/e", "f"):
        remote.put_layer(name, name.encode())
    mount = mounts(remote.url)
    remote.proxy.forget()
    found = subprocess.run(
        ["find", mount.path, "-name", "_*", "-prune", "-o", "-print"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    names = {str(Path(path).relative_to(mount.path)) for path in found}
    assert names == {".", "a", "a/b", "c", "c/d", "c/d/e", "f"}
    listed = remote.listed_prefixes()
    assert not [prefix for prefix in listed if "/_" in prefix or "/blobs" in prefix]
    assert remote.proxy.counts["ListObjectsV2"] <= 2 * len(names)
    assert remote.proxy.counts["GetObject"] == 0


# --- reading ----------------------------------------------------------------------------------------------------------


def test_reading_from_beginning_to_end(remote: RemoteRegistry, mounts: Mounts) -> None:
    """Right, in few requests that are under way together, and none of them twice."""
    content = payload(40 * MIB)
    digest = remote.put_layer("a", content)
    mount = mounts(remote.url)
    remote.proxy.latency = 0.03
    remote.proxy.forget()
    assert layer(mount, digest).read_bytes() == content
    gets = remote.gets(digest)
    assert len(gets) <= 12
    assert sum(each.received for each in gets) == len(content)
    assert remote.proxy.most_at_once >= 4
    # One look at the link and one at the blob, by whoever looks the name up.
    assert remote.proxy.counts["HeadObject"] <= 3


def test_reading_here_and_there(remote: RemoteRegistry, mounts: Mounts) -> None:
    """One request for each read, of 128 KiB at the most."""
    content = payload(40 * MIB)
    digest = remote.put_layer("a", content)
    mount = mounts(remote.url)
    places = random.Random(2).sample(range(0, len(content) - 4 * KIB, 3 * MIB), 12)
    with layer(mount, digest).open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        remote.proxy.forget()
        for place in places:
            assert os.pread(file.fileno(), 4 * KIB, place) == content[place : place + 4 * KIB]
    gets = remote.gets(digest)
    assert len(gets) == len(places)
    assert all(each.received <= 128 * KIB for each in gets)
    assert remote.proxy.counts["HeadObject"] == 0


def test_eight_readers_of_one_layer(remote: RemoteRegistry, mounts: Mounts) -> None:
    """Fetch it about once."""
    content = payload(24 * MIB)
    digest = remote.put_layer("a", content)
    mount = mounts(remote.url)
    remote.proxy.latency = 0.02
    readers = [subprocess.Popen(["sha256sum", layer(mount, digest)], stdout=subprocess.PIPE) for _ in range(8)]
    sums = {reader.communicate()[0].split()[0].decode() for reader in readers}
    assert sums == {digest.partition(":")[2]}
    assert sum(each.received for each in remote.gets(digest)) <= 1.3 * len(content)


def test_a_reader_that_waits_can_be_interrupted(remote: RemoteRegistry, mounts: Mounts) -> None:
    """`^C` ends a `cat` of what storage does not give, at once; and others are not kept from anything meanwhile."""
    stuck = [remote.put_layer("a", payload(4 * MIB, number)) for number in range(24)]
    good = payload(4 * MIB, 99)
    digest = remote.put_layer("a", good)
    mount = mounts(remote.url, "--operation-timeout", "40")
    for each in stuck:
        remote.proxy.fail("stall", "GetObject", times=1000, suffix=blob_key(each))
    cats = [subprocess.Popen(["cat", layer(mount, each)], stdout=subprocess.DEVNULL) for each in stuck]
    deadline = time.monotonic() + 30
    while len({each.key for each in list(remote.proxy.seen) if each.fault == "stall"}) < len(stuck):
        assert time.monotonic() < deadline, "not all readers have begun"
        time.sleep(0.02)  # polling interval
    began = time.monotonic()
    reading = subprocess.run(["cat", layer(mount, digest)], capture_output=True, timeout=15, check=True)
    assert reading.stdout == good
    assert len(os.listdir(mount.path / "a/_layers")) == len(stuck) + 1
    assert time.monotonic() - began < 10
    for cat in cats:
        assert cat.poll() is None
    began = time.monotonic()
    for cat in cats:
        cat.send_signal(signal.SIGINT)
    for cat in cats:
        assert cat.wait(10) == -signal.SIGINT
    assert time.monotonic() - began < 10
    remote.proxy.heal()
    assert layer(mount, stuck[0]).read_bytes() == payload(4 * MIB, 0)
    forgive_refusals(mount)


# --- verified reads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 5 * MIB])
def test_a_bit_that_flips_on_the_way(remote: RemoteRegistry, mounts: Mounts, tmp_path: Path, size: int) -> None:
    """With --verify-reads no byte of the layer is given out, wherever it is read; the reason names both digests."""
    content = payload(size)
    digest = remote.put_layer("a", content)
    mount = mounts(remote.url, "--verify-reads", "--cache-dir", str(tmp_path / "cache"))
    remote.proxy.fail("flip", "GetObject", times=1000, suffix=blob_key(digest))
    reading = subprocess.run(["cat", layer(mount, digest)], capture_output=True, check=False)
    assert reading.returncode == 1
    assert b"Input/output error" in reading.stderr
    assert reading.stdout == b""
    with layer(mount, digest).open("rb", buffering=0) as file, pytest.raises(OSError, match="Input/output") as caught:
        os.pread(file.fileno(), 10, size // 3)
    assert caught.value.errno == errno.EIO
    reasons = [line for line in refusals(mount) if digest in line]
    assert reasons
    assert all(line.count("sha256:") >= 2 for line in reasons)
    remote.proxy.heal()
    assert layer(mount, digest).read_bytes() == content
    forgive_refusals(mount)


def test_one_bit_that_flips_once(remote: RemoteRegistry, mounts: Mounts, tmp_path: Path) -> None:
    """In whichever answer: the reader gets the layer or an error."""
    content = payload(6 * MIB)
    digest = remote.put_layer("a", content)
    for number in (1, 3):
        cache = tmp_path / f"cache-{number}"
        mount = mounts(remote.url, "--verify-reads", "--cache-dir", str(cache))
        remote.proxy.fail("flip", "GetObject", times=1, after=number, suffix=blob_key(digest))
        reading = subprocess.run(["cat", layer(mount, digest)], capture_output=True, check=False)
        assert reading.stdout == content if reading.returncode == 0 else reading.stdout in (b"", content)
        remote.proxy.heal()
        forgive_refusals(mount)


def test_verified_reads_in_the_cache_of_this_user(
    remote: RemoteRegistry, mounts: Mounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --cache-dir; and what is read once is not fetched again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    digest = remote.put_layer("a", b"content")
    mount = mounts(remote.url, "--verify-reads")
    assert layer(mount, digest).read_bytes() == b"content"
    assert [path.name for path in (tmp_path / "xdg/layerfs/blobs").iterdir()] == [digest.replace(":", "-")]


def test_a_layer_that_is_too_large_to_be_verified(remote: RemoteRegistry, mounts: Mounts, tmp_path: Path) -> None:
    """Is not given out unverified: the reason says that the cache is too small."""
    digest = remote.put_layer("a", payload(3 * MIB))
    mount = mounts(remote.url, "--verify-reads", "--cache-dir", str(tmp_path / "cache"), "--cache-size", "2M")
    with mount.refused(errno.EIO):
        layer(mount, digest).read_bytes()
    assert any("more than the cache may have" in line for line in refusals(mount))
    forgive_refusals(mount)


# --- content that is kept here ----------------------------------------------------------------------------------------


def test_what_was_read_is_not_fetched_again(remote: RemoteRegistry, mounts: Mounts, tmp_path: Path) -> None:
    """By another mount with the same directory; a layer that was read as a whole is there as a whole."""
    contents = [payload(20 * MIB), b"small", b""]
    digests = [remote.put_layer("a", content) for content in contents]
    first = mounts(remote.url, "--cache-dir", str(tmp_path / "cache"))
    for digest, content in zip(digests, contents, strict=True):
        assert layer(first, digest).read_bytes() == content
    assert sum(each.received for each in remote.gets(digests[0])) <= 1.05 * len(contents[0])
    wait_kept(tmp_path / "cache", *digests[:2])
    second = mounts(remote.url, "--cache-dir", str(tmp_path / "cache"), "--read-only")
    remote.proxy.forget()
    for digest, content in zip(digests, contents, strict=True):
        assert layer(second, digest).read_bytes() == content
        assert remote.gets(digest) == []


def test_what_the_disk_has_changed_is_fetched_again(remote: RemoteRegistry, mounts: Mounts, tmp_path: Path) -> None:
    """A byte that is another in the cache never reaches a reader."""
    content = payload(9 * MIB)
    digest = remote.put_layer("a", content)
    first = mounts(remote.url, "--cache-dir", str(tmp_path / "cache"))
    assert layer(first, digest).read_bytes() == content
    wait_kept(tmp_path / "cache", digest)
    (file,) = (tmp_path / "cache/blobs").iterdir()
    stored = bytearray(file.read_bytes())
    stored[5 * MIB] ^= 1
    file.write_bytes(stored)
    for verify in ([], ["--verify-reads"]):
        mount = mounts(remote.url, "--cache-dir", str(tmp_path / "cache"), *verify)
        assert layer(mount, digest).read_bytes() == content
        mount.declare("WARNING", "has lost")
        stored = bytearray(next((tmp_path / "cache/blobs").iterdir(), file).read_bytes()) if file.exists() else stored
        stored[3 * MIB] ^= 1
        file.write_bytes(stored)


def test_reading_here_and_there_with_a_cache(remote: RemoteRegistry, mounts: Mounts, tmp_path: Path) -> None:
    """Does not fetch the whole layer, unless reads are verified."""
    content = payload(24 * MIB)
    digest = remote.put_layer("a", content)
    mount = mounts(remote.url, "--cache-dir", str(tmp_path / "cache"))
    with layer(mount, digest).open("rb", buffering=0) as file:
        for place in (20 * MIB, 4 * MIB, 12 * MIB):
            assert os.pread(file.fileno(), 100, place) == content[place : place + 100]
    assert sum(each.received for each in remote.gets(digest)) <= 2 * MIB
    verifying = mounts(remote.url, "--cache-dir", str(tmp_path / "cache"), "--verify-reads")
    with layer(verifying, digest).open("rb", buffering=0) as file:
        for place in (20 * MIB, 4 * MIB, 12 * MIB):
            assert os.pread(file.fileno(), 100, place) == content[place : place + 100]
    remote.proxy.forget()
    assert layer(mounts(remote.url, "--cache-dir", str(tmp_path / "cache")), digest).read_bytes() == content
    assert remote.gets(digest) == []


def test_a_cache_on_a_full_disk(remote: RemoteRegistry, mounts: Mounts, tmp_path: Path) -> None:
    """Readers do not notice; the log says it once."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small], check=True)
    try:
        mount = mounts(remote.url, "--cache-dir", str(small / "cache"))
        for number in range(3):
            content = payload(7 * MIB, number)
            assert layer(mount, remote.put_layer("a", content)).read_bytes() == content
        assert len(mount.declare("WARNING", "No space left")) == 1
        mount.stop()
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_a_directory_that_others_can_use_is_refused(remote: RemoteRegistry, tmp_path: Path) -> None:
    """With one line that says what to do, and the exit code of what the user can put right."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o755)
    (tmp_path / "mnt").mkdir()
    mounting = subprocess.run(
        [COMMAND, "mount", remote.url, tmp_path / "mnt", "--cache-dir", tmp_path / "cache"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert mounting.returncode == 1
    assert "chmod 700" in mounting.stderr
    assert len(mounting.stderr.splitlines()) == 1


def test_a_cache_inside_the_mount_is_refused(tmp_path: Path) -> None:
    """The daemon would wait for itself."""
    storage = Storage.create(tmp_path / "storage")
    (tmp_path / "mnt").mkdir()
    mounting = subprocess.run(
        [COMMAND, "mount", storage.root, tmp_path / "mnt", "--cache-dir", tmp_path / "mnt/cache"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert mounting.returncode == 1
    assert "inside the mountpoint" in mounting.stderr
    assert os.listdir(tmp_path / "mnt") == []
