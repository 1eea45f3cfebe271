"""The wheel and the source distribution: what is in them, and that they work in an environment with nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from harness.commands import run
from harness.storage import Storage

ROOT = Path(__file__).parents[2]

#: Seconds for pip, which may have to compile.
PIP_LIMIT = 110


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a source distribution, and a wheel that was made from it."""
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, ROOT)
    return directory


@pytest.fixture
def plain_environment() -> dict[str, str]:
    """What a login has: nothing of this virtual environment."""
    names = ("HOME", "LANG", "USER", *(name for name in os.environ if name.startswith(("PIP_", "SSL_"))))
    environment = {name: os.environ[name] for name in names if name in os.environ}
    return environment | {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def test_what_is_in_them(distributions: Path) -> None:
    """The wheel has the units and pages beside the code, and no tests; the source distribution has all of it."""
    [wheel] = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [entry_points] = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    units = {path.name for path in (ROOT / "systemd").iterdir()}
    assert {Path(name).name for name in names if name.startswith("layerfs/systemd/")} == units
    assert {line for line in entry_points.splitlines() if "=" in line} == {
        "layerfs = layerfs.cli:main",
        "mount.layerfs = layerfs.cli:main",
    }
    assert not [name for name in names if "test" in name]
    [source] = distributions.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        parts = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "docs/operating.md", "systemd/layerfs@.service"} <= parts
    assert {"tests/conftest.py", "packaging/Containerfile", "packaging/README.md"} <= parts


def test_a_clean_environment(
    distributions: Path, tmp_path: Path, storage: Storage, plain_environment: dict[str, str]
) -> None:
    """`pip install` of the wheel is enough to mount, upload and unmount, and to install units and manual pages."""
    environment = tmp_path / "venv"
    storage.make_repository("r")
    (tmp_path / "mnt").mkdir()

    def inside(name: str, *arguments: object) -> str:
        return run(environment / "bin" / name, *arguments, env=plain_environment, cwd="/", timeout=PIP_LIMIT).stdout

    run(sys.executable, "-m", "venv", environment)
    [wheel] = distributions.glob("*.whl")
    inside("pip", "install", "--quiet", wheel)
    assert json.loads(inside("pip", "inspect"))["installed"]
    inside("layerfs", "mount", "--daemon", "--log-file", tmp_path / "log", storage.root, tmp_path / "mnt")
    try:
        assert os.listdir(tmp_path / "mnt") == ["r"]
        (tmp_path / "mnt/r/_uploads/x").write_bytes(b"abc")
    finally:
        inside("layerfs", "umount", tmp_path / "mnt")
    assert [data.read_bytes() for data in storage.root.rglob("_uploads/*/data")] == [b"abc"]
    inside("layerfs", "install-units", "--prefix", tmp_path / "root")
    unit = (tmp_path / "root/etc/systemd/system/layerfs@.service").read_text()
    assert f"ExecStart={environment}/bin/layerfs mount " in unit
    assert os.readlink(tmp_path / "root/usr/sbin/mount.layerfs") == f"{environment}/bin/mount.layerfs"
    inside("layerfs", "manual", tmp_path / "man")
    assert (tmp_path / "man/man8/mount.layerfs.8").exists()


def test_installing_units(tmp_path: Path) -> None:
    """Is repeatable, says what it does, and leaves alone what somebody changed."""
    command = [Path(sys.executable).parent / "layerfs", "install-units", "--prefix", tmp_path]
    assert run(*command, "--dry-run").stdout.count("would write") == 7
    assert list(tmp_path.iterdir()) == []
    assert run(*command).stdout.count("wrote ") == 7
    assert run(*command).stdout.count("unchanged ") == 7
    unit = tmp_path / "etc/systemd/system/layerfs@.service"
    unit.write_text("# mine\n")
    refused = subprocess.run([*command], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "--force" in refused.stderr
    assert unit.read_text() == "# mine\n"
    run(*command, "--force")
    assert "ExecStart=" in unit.read_text()
    package = tmp_path / "package"
    run(
        *command[:2],
        "--prefix",
        package,
        "--unit-directory",
        "/usr/lib/systemd/system",
        "--command",
        "/usr/bin/layerfs",
    )
    assert "ExecStart=/usr/bin/layerfs mount" in (package / "usr/lib/systemd/system/layerfs@.service").read_text()
    assert os.readlink(package / "usr/sbin/mount.layerfs") == "/usr/bin/mount.layerfs"


@pytest.mark.parametrize(
    ("place", "options"), [("/mnt/a-b", "_netdev"), ("/mnt/.hidden/é x", "ro,umask=077"), ("/m/100%", "a=%n")]
)
def test_units_for_a_place(tmp_path: Path, place: str, options: str) -> None:
    """Are called what systemd-escape says, are valid, and mean what was said, whatever characters are in it."""
    command = [Path(sys.executable).parent / "layerfs", "install-units", "--prefix", tmp_path]
    run(*command, "--mount", "s3://bucket/100%", place, "-o", options)
    name = run("systemd-escape", "--path", place).stdout.strip()
    units = tmp_path / "etc/systemd/system"
    for suffix in ("mount", "automount"):
        checked = run("systemd-analyze", "verify", units / f"{name}.{suffix}")
        assert (checked.stdout, checked.stderr) == ("", "")
    text = (units / f"{name}.mount").read_text()
    settings = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    meant = {key: value.replace("%%", "%") for key, value in settings.items()}
    assert (meant["What"], meant["Where"], meant["Options"]) == ("s3://bucket/100%", place, options)


@pytest.mark.parametrize("place", ["relative", "/", "/mnt/a\nb"])
def test_places_that_cannot_be_in_a_unit(tmp_path: Path, place: str) -> None:
    """Are refused, and nothing is written."""
    command = [Path(sys.executable).parent / "layerfs", "install-units", "--prefix", tmp_path]
    result = subprocess.run([*command, "--mount", "s", place], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
