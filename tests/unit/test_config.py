"""Mount options as text."""

from __future__ import annotations

import os

import pytest

from layerfs.config import (
    CACHE_VARIABLE,
    InvalidOption,
    MountConfig,
    parse_mount_options,
    parse_value,
)


def test_what_fstab_says_to_everybody_is_ignored() -> None:
    """None of the words that mount(8) passes on for others does anything, or fails."""
    words = "rw,async,sync,atime,noatime,relatime,dev,suid,exec,nodev,nosuid,noexec,user,users,nouser,owner,group"
    words += ",auto,noauto,_netdev,nofail,defaults,remount,x-systemd.automount,x-systemd.mount-timeout=30,X-mount.mkdir"
    assert parse_mount_options(words) == {}


def test_every_option_has_its_dash_o_form() -> None:
    """`-o key_with_underscores=value` sets the field of that name, with the value that the long option would have."""
    given = "allow_delete,allow_other,cache=memory,create,read_only,trust_hash_states,uid=5,gid=6,umask=027"
    given += ",metadata_ttl=0.5,operation_timeout=9,max_handles=7,max_uploads=8"
    given += ",log_level=debug,log_format=json,log_file=/tmp/log"
    assert parse_mount_options(given) == {
        "allow_delete": True,
        "allow_other": True,
        "cache": "memory",
        "create": True,
        "read_only": True,
        "trust_hash_states": True,
        "uid": 5,
        "gid": 6,
        "umask": 0o27,
        "metadata_ttl": 0.5,
        "operation_timeout": 9.0,
        "max_handles": 7,
        "max_uploads": 8,
        "log_level": "debug",
        "log_format": "json",
        "log_file": "/tmp/log",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ro", {"read_only": True}),
        ("ro,rw", {"read_only": True}),
        ("read_only=false", {"read_only": False}),
        ("allow_other=Yes", {"allow_other": True}),
        ("", {}),
        (",,ro,", {"read_only": True}),
        (" ro", {"read_only": True}),
        ("umask=022,umask=077", {"umask": 0o77}),
    ],
)
def test_flags_and_repetition(text: str, expected: dict[str, object]) -> None:
    """A flag may have a value, empty words are nothing, the last one wins; but `rw` never undoes `ro`."""
    assert parse_mount_options(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"log_file=/a\,b", "/a,b"),
        (r"log_file=/a\\,ro", "/a\\"),
        (r"log_file=/a\b", r"/a\b"),
        ("log_file=/a=b", "/a=b"),
    ],
)
def test_a_backslash_keeps_a_comma(text: str, expected: str) -> None:
    r"""`\,` is a comma and `\\` a backslash inside a value; any other backslash is itself."""
    assert parse_mount_options(text)["log_file"] == expected


@pytest.mark.parametrize(
    "text", ["frobnicate", "allow-delete", "RO", "umask", "allow_delete=maybe", "xx-y", "ro,foo=1"]
)
def test_what_nobody_knows_is_an_error_that_names_it(text: str) -> None:
    """An unknown word, a missing value and a flag that is neither true nor false are refused, with the word."""
    with pytest.raises(InvalidOption, match=text.rpartition(",")[2].partition("=")[0]):
        parse_mount_options(text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *[("umask", text) for text in ("8", "0888", "-1", "", "1000", "0x1f", "٠٢٢")],
        *[("metadata_ttl", text) for text in ("-1", "nan", "inf", "", "one", "1e999")],
        *[("operation_timeout", text) for text in ("0", "-1", "nan", "")],
        *[("max_handles", text) for text in ("0", "-1", "1.5", "", "²")],
        *[("uid", text) for text in ("-1", "", "no-such-user", "4294967295")],
        ("gid", "no-such-group"),
        *[("cache", text) for text in ("", "disk", "MEMORY", "redis", "http://host", "redis:/host")],
        ("log_level", "loud"),
        ("log_format", "xml"),
        ("log_file", ""),
    ],
)
def test_values_without_meaning(name: str, text: str) -> None:
    """The error shows the value."""
    with pytest.raises(InvalidOption) as raised:
        parse_value(name, text)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("umask", "022", 0o22),
        ("umask", "0o77", 0o77),
        ("umask", "0", 0),
        ("metadata_ttl", "0", 0.0),
        ("uid", "root", 0),
        ("gid", "root", 0),
        ("uid", "4294967294", 4294967294),
        ("log_level", "WARNING", "warning"),
    ],
)
def test_values(name: str, text: str, expected: object) -> None:
    """What each kind of value may look like."""
    assert parse_value(name, text) == expected


def test_a_log_file_is_made_absolute() -> None:
    """A background daemon works in `/`, so a relative name has to be understood before."""
    assert parse_value("log_file", "log") == os.path.join(os.getcwd(), "log")


def test_the_owner_is_who_mounts() -> None:
    """Without `uid` and `gid` files belong to this process."""
    config = MountConfig(source="s", mountpoint="m")
    assert (config.uid, config.gid) == (os.geteuid(), os.getegid())


@pytest.mark.parametrize(
    "text", ["none", "memory", "redis://localhost", "rediss://host:6380/2", "unix:///run/redis.sock"]
)
def test_caches(text: str) -> None:
    """None, memory, or a Redis by its URL; memory is the default."""
    assert parse_value("cache", text) == text
    assert MountConfig(source="s", mountpoint="m").cache == "memory"


@pytest.mark.parametrize(
    "text", ["redis://:open-sesame@host", "redis://a:open-sesame@h/0", "redis://h?password=open-sesame"]
)
def test_no_password_where_everybody_reads_it(text: str) -> None:
    """`ps` shows the command line: a cache with a password is refused there, which says where it belongs."""
    for parse in (lambda: parse_value("cache", text), lambda: parse_mount_options(f"cache={text}")):
        with pytest.raises(InvalidOption, match=CACHE_VARIABLE) as raised:
            parse()
        assert "sesame" not in str(raised.value)
