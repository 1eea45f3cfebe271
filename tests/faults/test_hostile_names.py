"""Names that try to be something else: only the grammars of the registry ever become a path in storage.

All of it through the mount, with every call that takes a name. Afterwards the storage is looked at: nothing outside
`docker/registry/v2` has changed, and nothing in it has a name, a kind or a mode that no registry makes.
"""

from __future__ import annotations

import os
import random
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.bounded import Outcome, attempt, timed
from harness.damage import assert_undamaged, strange_entries
from harness.mount import Mount
from harness.storage import STARTED_AT, Storage, digest_of, snapshot
from harness.tolerance import forgive_refusals
from harness.workload import content

LAYER = content("layer", 3000)
HEX = digest_of(LAYER).partition(":")[2]
UPLOAD = b"upload.bin"

#: How many invented names are tried beside the list.
INVENTED = 80

NAMES: list[bytes] = [
    *(b"...", b"..%2f..", b"%2e%2e", b"%2e", b"..\\..", b"\\", b"~", b"~root", b"$(id)", b"`id`", b"a;b", b"*", b"-rf"),
    *(b"new\nline", b"\n", b"\r", b"tab\t", b"\x1b[31mred\x1b[0m", b"\x07bell", b"\x7f", b"\x08" * 20, b" ", b"  a "),
    *("right\u202eto left".encode(), "\u2066isolate".encode(), "zero\u200bwidth".encode(), "line\u2028sep".encode()),
    *(
        b"\xff\xfe",
        b"\xc0\xae\xc0\xae",
        b"\xed\xa0\x80",
        b"\x80",
        "e\u0301".encode(),
        "ünïcode".encode(),
        "中".encode(),
    ),
    *(b"a" * 255, b"A" * 255, "é".encode() * 127, b"." * 255, b"_" * 255),
    *(b"UPPER", b"Upper", b"a..b", b"a._b", b"a___b", b"a-", b"-a", b"_a", b".a", b"a.", b"a_", b"a:b", b"a@b", b"a+b"),
    *(b"_layers", b"_uploads", b"_manifests", b"_tags", b"_oci", b"_LAYERS", b".layerfs", b"blobs", b"docker"),
    *(b"con", b"nul", b"link", b"data", b"startedat", b"hashstates", b"layerfs-name", b"x.tmp"),
    f"sha256:{HEX}".encode(),
    f"sha256:{HEX.upper()}".encode(),
    f"SHA256:{HEX}".encode(),
    f"sha256:{HEX[:-1]}".encode(),
    f"sha256:{HEX}0".encode(),
    f"sha256:{HEX}\n".encode(),
    f" sha256:{HEX}".encode(),
    f"sha256:..{HEX[2:]}".encode(),
    f"sha256%3a{HEX}".encode(),
    f"sha512:{HEX}".encode(),
    f"sha512:{HEX}{HEX}".encode(),
    f"sha384:{HEX}".encode(),
    f"md5:{HEX[:32]}".encode(),
    f"tarsum.v1+sha256:{HEX}".encode(),
    f"tarsum.../../+sha256:{HEX}".encode(),
    *(b"sha256:", b":", b"::", b"sha256:" + b"g" * 64, b"sha256:" + b"0" * 64, b"sha256:" + b"-" * 64),
    *(b"00000000-0000-0000-0000-000000000000", b"00000000-0000-0000-0000-00000000000G"),
]

#: Too long for any file system: the kernel itself says so.
TOO_LONG = [b"a" * 256, b"sha256:" + b"0" * 300]

#: What a name may be answered with; ENOTCONN, EIO and the like would be a failure of ours.
ANSWERS = {
    *("ok", "ENOENT", "EINVAL", "EEXIST", "EPERM", "ENAMETOOLONG", "ENOTDIR", "EISDIR", "EBADMSG", "ENOTEMPTY"),
    *("EOPNOTSUPP", "ENODATA", "ERANGE", "EBUSY", "EACCES"),
}

_COMPONENT = re.compile(rb"[A-Za-z0-9._-]+")
_REPOSITORY = re.compile(rb"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_UNSEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


@pytest.fixture
def surrounded(tmp_path: Path) -> Storage:
    """A storage with something beside and above `docker/registry/v2` that must stay as it is."""
    storage = Storage.create(tmp_path / "storage")
    for place in (storage.root, storage.root / "docker", storage.root / "docker/registry"):
        (place / "neighbour").write_bytes(b"stays")
        (place / "v1").mkdir()
    storage.put_layer("app", LAYER)
    storage.put_upload("app", b"bytes", upload_id="7f8e2a50-3c1d-4d2b-9a53-6a0b7c1e2f10")
    return storage


def _invented(seed: int) -> Iterator[bytes]:
    dice = random.Random(seed)
    pieces = [b"..", b".", b"sha256:", b"%", b"\n", b"\x1b", b"_", b"-", b"a", b"Z", b"\xff", HEX.encode(), b" ", b"\\"]
    for _ in range(INVENTED):
        name = b"".join(dice.choice(pieces) for _ in range(dice.randint(1, 6)))
        yield name if name not in (b".", b"..") else b"..."


def _everything(root: bytes, name: bytes) -> dict[str, Outcome]:
    """Every call that takes a name, with this one, in every kind of directory."""
    app = os.path.join(root, b"app")
    uploads, layers = os.path.join(app, b"_uploads"), os.path.join(app, b"_layers")
    seen: dict[str, Outcome] = {}

    def call(what: str, action: Callable[..., object], *arguments: object) -> None:
        seen[what] = timed(action, *arguments)

    for where, directory in (("root", root), ("repository", app), ("uploads", uploads), ("layers", layers)):
        path = os.path.join(directory, name)
        call(f"stat in {where}", os.lstat, path)
        call(f"open in {where}", _open_and_close, path, os.O_RDONLY | os.O_NONBLOCK)
        call(f"mknod in {where}", os.mknod, path, stat.S_IFIFO | 0o666)
        call(f"device in {where}", os.mknod, path, stat.S_IFBLK | 0o666, os.makedev(7, 0))
        call(f"symlink in {where}", os.symlink, b"/etc/passwd", path)
        call(f"link in {where}", os.link, os.path.join(layers, b"sha256:" + HEX.encode()), path)
        call(f"mkdir in {where}", os.mkdir, path, 0o4777)
        call(f"create in {where}", _open_and_close, path, os.O_WRONLY | os.O_CREAT)
        call(f"chmod in {where}", os.chmod, path, 0o6755)
        call(f"xattr in {where}", os.setxattr, path, b"security.capability", b"x")
        _make_upload(uploads)
        call(f"rename to {where}", os.rename, os.path.join(uploads, UPLOAD), path)
        call(f"rename from {where}", os.rename, path, os.path.join(uploads, b"other"))
        call(f"unlink in {where}", os.unlink, path)
        call(f"rmdir in {where}", os.rmdir, path)
    return seen


def _open_and_close(path: bytes, flags: int) -> None:
    os.close(os.open(path, flags, 0o6777))


def _make_upload(uploads: bytes) -> None:
    os.close(os.open(os.path.join(uploads, UPLOAD), os.O_WRONLY | os.O_CREAT))


def _try_all(root: Path, names: list[bytes]) -> list[str]:
    """What was answered otherwise than it should be."""
    wrong = []
    for name in names:
        for what, outcome in _everything(os.fsencode(root), name).items():
            if outcome.name not in ANSWERS:
                wrong.append(f"{what} {name!r}: {outcome.name}")
    return wrong


def _assert_only_paths_of_the_registry(storage: Storage) -> None:
    strange = strange_entries(storage)
    for path in storage.v2.rglob("*"):
        relative = os.fsencode(path.relative_to(storage.v2))
        if not all(_COMPONENT.fullmatch(component) for component in relative.split(b"/")):
            strange.append(repr(relative))
        if path.name == "_layers":
            name = relative.removeprefix(b"repositories/").removesuffix(b"/_layers")
            if not all(_REPOSITORY.fullmatch(component) for component in name.split(b"/")):
                strange.append(f"repository {name!r}")
    assert not strange, "\n".join(strange)


def _around(storage: Storage) -> dict[str, object]:
    return {path: entry for path, entry in snapshot(storage.root).items() if not path.startswith("docker/registry/v2/")}


@pytest.mark.parametrize("seed", [None, 1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 20))])
def test_names_in_every_call(seed: int | None, surrounded: Storage, mounts) -> None:
    """All calls with all names are answered, the daemon lives, and storage has nothing that it should not have."""
    mount = mounts(surrounded)
    before = _around(surrounded)
    names = [*NAMES, *TOO_LONG] if seed is None else list(_invented(seed))
    assert attempt(_try_all, mount.path, names, seconds=100).value == []
    assert mount.is_alive
    assert _around(surrounded) == before
    _assert_only_paths_of_the_registry(surrounded)
    assert_undamaged(surrounded)
    # `rename from _layers` and `unlink in _layers` met the layer itself, and were refused.
    assert attempt((mount.path / "app/_layers" / digest_of(LAYER)).read_bytes).value == LAYER
    forgive_refusals(mount)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nothing_unescaped_in_the_log(log_format: str, surrounded: Storage, tmp_path: Path, watchdog: None) -> None:
    """No control character, mark of direction or broken UTF-8 from a name gets into the log or `.layerfs/errors`."""
    uploads = surrounded.repository("app") / "_uploads"
    for name in ("\x1b[31m", "line\nbreak", "right\u202eleft"):
        (uploads / name).mkdir()
        (uploads / name / "startedat").write_text(STARTED_AT)
        surrounded.put_link("app", "sha256:" + "1" * 64, name)
    mount = Mount(surrounded.root, tmp_path / "mnt", "--log-format", log_format, "--log-level", "debug")
    try:
        mount.start()
        attempt(_try_all, mount.path, NAMES[:30], seconds=100)
        errors = attempt((mount.path / ".layerfs/errors").read_bytes).value
        written = mount.log_path.read_bytes()
    finally:
        mount.clean_up()
    assert len(written.splitlines()) > 50
    assert b"red" in written
    for text in (written.decode("utf-8"), errors.decode("utf-8")):
        assert _UNSEEN.findall(text) == []
    if log_format == "text":
        # Every line is one of ours: no name has begun a new one.
        assert all(re.match(r"\d{4}-\d\d-\d\dT", line) for line in written.decode().split("\n") if line)


def test_a_path_made_of_dots(surrounded: Storage, mounts) -> None:
    """`..` goes up in the mount, as everywhere, and nothing of the storage but its repositories has a name in it."""
    mount = mounts(surrounded)
    inside = mount.path / "app/_layers"
    assert attempt(os.listdir, inside / "../../app/_layers/..").value == attempt(os.listdir, mount.path / "app").value
    for name in ("neighbour", "v1", "docker", "registry", "v2", "blobs", "repositories"):
        assert attempt(os.stat, mount.path / name).name == "ENOENT"
