"""`--config`: what a registry's configuration does for the commands, and what is said to them nevertheless."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness.commands import run
from harness.mount import COMMAND
from harness.storage import Storage

pytestmark = pytest.mark.usefixtures("watchdog")

REPOSITORY = "some/repository"

USAGE, FSCK_USAGE = 1, 16


@pytest.fixture
def configure(storage: Storage, tmp_path: Path):
    """Writes the configuration of a registry on `storage`, with more in its section `storage`."""
    storage.make_repository(REPOSITORY)

    def write(more: str = "", *, rest: str = "") -> Path:
        path = tmp_path / "config.yml"
        root = f"  filesystem: {{rootdirectory: {storage.root}}}\n"
        path.write_text(f"version: 0.1\nstorage:\n{root}  {more}\n{rest}\n")
        return path

    return write


def complaint(*argv: object, code: int = USAGE, **options: object) -> str:
    result = run(COMMAND, *argv, check=False, **options)
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    assert result.stderr.startswith("layerfs: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


# --- in place of SOURCE ------------------------------------------------------------------------------------------


def test_source_is_left_out(configure, storage: Storage) -> None:
    """By every command that takes one; what comes after it moves up."""
    config = configure()
    for option in ("--config", "--registry-config"):
        assert run(COMMAND, "ls", option, config).stdout == f"{REPOSITORY}\n"
    assert run(COMMAND, "ls", REPOSITORY, "--config", config).stdout.startswith("TAG")
    assert run(COMMAND, "check", "--config", config).stdout == ""
    assert run(COMMAND, "purge-uploads", "--config", config).stdout.startswith("0 uploads")
    for command in (["cat", "--config"], ["inspect", "--registry-config"]):
        assert "unknown tag 'latest'" in complaint(*command, config, REPOSITORY)


def test_source_may_be_there(configure, storage: Storage) -> None:
    """Where something has to stand, as in fstab(5): `none`, or the storage itself; anything else is a mistake."""
    config = configure()
    for source in ("none", storage.root, f"{storage.root}/"):
        assert run(COMMAND, "ls", "--config", config, source, REPOSITORY).stdout.startswith("TAG")
    said = complaint("ls", "--config", config, "/elsewhere", REPOSITORY)
    assert f"SOURCE is not the storage that '{config}' configures, '{storage.root}': leave it out" in said
    assert "sesame" not in complaint("ls", "--config", config, "s3://a:open-sesame@b", REPOSITORY)


def test_no_source_at_all(configure) -> None:
    """Is what it was before."""
    assert "Missing argument 'SOURCE'" in complaint("ls")
    assert "Missing argument 'MOUNTPOINT'" in complaint("mount", "--config", configure())
    assert "must not be empty" in complaint("ls", "--config", "")


def test_what_is_wrong_with_the_file(tmp_path: Path) -> None:
    """Is one line, with each command's own exit code for such things."""
    missing = tmp_path / "missing.yml"
    for command, code in (("ls", USAGE), ("check", FSCK_USAGE), ("purge-uploads", USAGE)):
        said = complaint(command, "--config", missing, code=code)
        assert f"'{missing}': cannot read the registry's configuration: No such file or directory" in said
    assert str(missing) in complaint("mount", "--config", missing, tmp_path)


def test_a_root_without_a_registry(configure, storage: Storage, tmp_path: Path) -> None:
    """The line says which file is to blame."""
    config = configure()
    elsewhere = os.environ | {"REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": str(tmp_path)}
    said = complaint("ls", "--config", config, env=elsewhere)
    assert f"cannot read '{tmp_path}', which '{config}' configures: no registry storage" in said
    assert "It may also be that nothing was ever pushed there" in said


def test_warnings_are_shown(configure) -> None:
    """On standard error, and the command works."""
    result = run(COMMAND, "ls", "--config", configure("delete: {enable: true}"))
    assert result.stdout == f"{REPOSITORY}\n"
    assert "WARNING layerfs.source: " in result.stderr
    assert "storage.delete.enable is unknown, and ignored" in result.stderr


# --- what may be changed -----------------------------------------------------------------------------------------

DELETE, NO_DELETE = "delete: {enabled: true}", "delete: {enabled: false}"
READ_ONLY = "maintenance: {readonly: {enabled: true}}"


@pytest.mark.parametrize(
    ("more", "options", "expected"),
    [
        ("", [], (False, False)),
        (DELETE, [], (False, True)),
        (DELETE, ["--no-allow-delete"], (False, False)),
        (NO_DELETE, ["--allow-delete"], (False, True)),
        (READ_ONLY, [], (True, False)),
        (READ_ONLY, ["-o", "read_only=false"], (False, False)),
    ],
)
def test_what_the_registry_allows(
    configure, mounts, more: str, options: list[str], expected: tuple[bool, bool]
) -> None:
    """Is what the mount allows, unless it is told otherwise."""
    mount = mounts("none", "--config", str(configure(more)), *options)
    status = json.loads((mount.path / ".layerfs/status.json").read_text())
    assert (status["read_only"], status["allow_delete"]) == expected
    directory = mount.path / "another"
    if expected[0]:
        with pytest.raises(OSError, match="Read-only"):
            directory.mkdir()
    else:
        directory.mkdir()


def test_config_as_mount_writes_it(configure, mounts, storage: Storage) -> None:
    """`-o config=FILE`, beside the source that mount(8) always has."""
    mount = mounts(str(storage.root), "-o", f"config={configure(DELETE)}")
    assert json.loads((mount.path / ".layerfs/status.json").read_text())["allow_delete"]
    assert "use one of" in complaint(
        "mount", "--config", configure(), "-o", f"config={configure()}", "none", mount.path
    )


# --- clients that are not installed ------------------------------------------------------------------------------

HIDDEN = "import sys; sys.modules[sys.argv[1]] = None; from layerfs.cli import main; main(sys.argv[2:])"


@pytest.mark.parametrize(
    ("module", "extra", "source"),
    [
        ("aiobotocore", "s3", "s3://bucket/prefix"),
        ("azure.storage.blob", "azure", "az://container/prefix"),
        ("google.auth", "gcs", "gs://bucket/prefix"),
        # Parts that the libraries themselves need.
        ("requests", "gcs", "gs://bucket/prefix"),
        ("aiohttp", "azure", "az://container/prefix"),
        # Needed only where there is no key.
        ("azure.identity", "azure", "az://container/prefix?account=storage1"),
    ],
)
def test_an_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch, module: str, extra: str, source: str) -> None:
    """One line names the module and the command that installs it."""
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    command = [sys.executable, "-c", HIDDEN, module, "ls", source]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stdout) == (USAGE, "")
    assert result.stderr.count("\n") == 1
    pattern = rf": {re.escape(module)}(\.\w+)? is not installed; run pip install 'layerfs\[{extra}\]'\n"
    assert re.search(pattern, result.stderr), result.stderr


def test_a_missing_extra_for_urls(configure) -> None:
    """Rules for urls are never left out silently."""
    config = configure(rest="validation: {manifests: {urls: {allow: [x]}}}")
    command = [sys.executable, "-c", HIDDEN, "re2", "ls", "--config", config]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == USAGE
    assert "pip install 'layerfs[urls]'" in result.stderr


# --- credentials -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "s3://key:open-sesame@bucket/prefix",
        "s3://bucket?secret_access_key=open-sesame",
        "az://container?account_key=open-sesame",
        "gs://bucket?token=open-sesame",
        "sftp://user:open-sesame@host/path",
        "webdav://host/path?password=open-sesame",
        "ftp://user:open-sesame@host/",
    ],
)
def test_credentials_in_a_url(source: str) -> None:
    """Are refused, whatever is installed: `ps` and the shell's history have them. The line says where they belong."""
    said = complaint("ls", source)
    assert "sesame" not in said
    assert "credentials in" in said
    assert "put them" in said
