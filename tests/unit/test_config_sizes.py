"""Sizes as people write them, and where content is kept unless they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfs.config import InvalidOption, MountConfig, parse_mount_options, parse_value


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 1 << 20),
        ("500M", 500 << 20),
        ("500MB", 500_000_000),
        ("500MiB", 500 << 20),
        ("20G", 20 << 30),
        ("1.5TiB", 3 << 39),
        ("2 gb", 2_000_000_000),
        ("1P", 1 << 50),
    ],
)
def test_sizes(text: str, size: int) -> None:
    """With the units of coreutils, in any case, also of a mount option."""
    assert parse_value("cache_size", text) == size
    assert parse_mount_options(f"cache_size={text}") == {"cache_size": size}


@pytest.mark.parametrize("text", ["", "G", "-1G", "10X", "1000K", "0", "1e9", "10GG", "1.G", "ten", "1" * 400, "5M\n5"])
def test_what_is_no_size(text: str) -> None:
    """Is refused with an example, as is what is too small to be of use."""
    with pytest.raises(InvalidOption, match="500M"):
        parse_value("cache_size", text)


def test_where_content_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nowhere, unless it is said where or reads are verified: then where caches of this user or service are."""
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert MountConfig(source="s", mountpoint="m").content_directory is None
    assert MountConfig(source="s", mountpoint="m", cache_dir="/c", verify_reads=True).content_directory == "/c"
    verifying = MountConfig(source="s", mountpoint="m", verify_reads=True)
    assert verifying.content_directory == str(tmp_path / ".cache/layerfs")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert verifying.content_directory == "/x/layerfs"
    monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/layerfs:/other")
    assert verifying.content_directory == "/var/cache/layerfs"
