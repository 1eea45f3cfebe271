"""From what a user writes as SOURCE to the driver, and what is said if that fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from layerfs.driver.fsspec import FsspecDriver
from layerfs.driver.local import LocalDriver
from layerfs.driver.memory import MemoryDriver
from layerfs.driver.sources import open_driver, parse_object_url
from layerfs.errors import DriverError, PathNotFound, UnknownSource


@pytest.mark.parametrize("form", ["{}", "file://{}", "FILE://{}", "file://localhost{}", "local://{}"])
async def test_a_directory(tmp_path: Path, form: str) -> None:
    """As a path and as a URL."""
    (tmp_path / "a").write_bytes(b"content")
    driver = open_driver(form.format(tmp_path))
    assert isinstance(driver, LocalDriver)
    assert await driver.get_content("/a", limit=10) == b"content"


async def test_a_directory_whose_name_needs_quoting(tmp_path: Path) -> None:
    """In a URL only."""
    (tmp_path / "a b%").mkdir()
    (tmp_path / "a b%" / "c").write_bytes(b"content")
    for source in (f"{tmp_path}/a b%", f"file://{tmp_path}/a%20b%25"):
        assert await open_driver(source).get_content("/c", limit=10) == b"content"


def test_a_missing_directory(tmp_path: Path) -> None:
    """Is made only when asked for."""
    missing = str(tmp_path / "missing")
    with pytest.raises(PathNotFound, match="missing"):
        open_driver(missing)
    open_driver(missing, create=True)
    assert (tmp_path / "missing").is_dir()


async def test_memory() -> None:
    """Each is a new one, that nobody else has."""
    one, two = open_driver("memory://"), open_driver("memory://")
    assert isinstance(one, MemoryDriver)
    await one.put_content("/a", b"content")
    assert await two.list("/") == []


async def test_what_fsspec_knows() -> None:
    """Any other scheme."""
    driver = open_driver("http://127.0.0.1:9/storage")
    assert isinstance(driver, FsspecDriver)
    assert driver.name == "http"


@pytest.mark.parametrize(
    "source",
    [
        "",
        "file://",
        "nonsense://x",
        "simplecache::memory://x",
        "file://host/x",
        "file:///tmp#x",
        "file:///tmp?x",
        "://",
        "s3:://b",
        "zip:///tmp/x.zip",
        "dir:///tmp",
        "cached:///tmp",
        "async_wrapper:///tmp",
        "data://,x",
        "http:///x",
        "http://host/x?y=z",
    ],
)
def test_what_nobody_knows(source: str) -> None:
    """One line says what is wrong."""
    with pytest.raises(UnknownSource) as caught:
        open_driver(source)
    assert "\n" not in str(caught.value)


def test_a_client_library_that_is_not_installed() -> None:
    """The line says which; secrets in the URL are not repeated."""
    with pytest.raises(UnknownSource) as caught:
        open_driver("oci://user:secret@bucket/prefix?token=secret")
    assert "ocifs" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("synonym", "url"),
    [
        ("s3a://bucket/prefix", "s3://bucket/prefix"),
        ("gcs://bucket/prefix", "gs://bucket/prefix"),
        ("abfss://box@account.dfs.core.windows.net/x", "az://box/x?account=account"),
        ("wasbs://box@account.blob.core.windows.net/x", "az://box/x?account=account"),
    ],
)
def test_other_names_of_object_stores(synonym: str, url: str) -> None:
    """Are those of Hadoop and fsspec for what has a driver here."""
    assert parse_object_url(synonym) == parse_object_url(url) is not None


def test_an_unreadable_directory(tmp_path: Path) -> None:
    """Root may read everything, so somebody else tries."""
    program = (
        "import os, sys; from layerfs.driver.sources import open_driver; from layerfs.errors import AccessDenied\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: open_driver(sys.argv[1])\n"
        "except AccessDenied as error: assert sys.argv[1] in str(error); print('denied')\n"
    )
    tmp_path.chmod(0o700)
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "denied\n"


def test_importing_the_sources_does_not_import_fsspec() -> None:
    """A mount of a local directory starts without it."""
    program = "import sys, layerfs.driver.sources; sys.exit('fsspec' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_errors_have_a_path() -> None:
    """Every one is a driver error."""
    assert issubclass(UnknownSource, DriverError)
