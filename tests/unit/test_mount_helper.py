"""What mount(8) says to a helper, understood."""

from __future__ import annotations

import pytest

from layerfs.config import InvalidOption
from layerfs.mount_helper import HelperUsage, Request, is_called, parse

COMMANDS = {"mount": None, "ls": None}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["S", "D"], Request(source="S", mountpoint="D")),
        (["S", "D", "-o", "rw,umask=077"], Request(source="S", mountpoint="D", words=("rw", "umask=077"))),
        (["S", "D", "-n", "-o", "ro"], Request(source="S", mountpoint="D", words=("ro",))),
        (["-o", "ro", "-r", "S", "D"], Request(source="S", mountpoint="D", words=("ro", "ro"))),
        (["S", "D", "-fv"], Request(source="S", mountpoint="D", is_fake=True, is_verbose=True)),
        (["S", "D", "-o", "a,b", "-o", "c"], Request(source="S", mountpoint="D", words=("a", "b", "c"))),
        (["S", "D", "-t", "fuse.layerfs"], Request(source="S", mountpoint="D")),
        (["S", "D", "-s", "-o", "ro,bogus=1"], Request(source="S", mountpoint="D", words=("ro",))),
        (["S", "D", "-o", r"log_file=/a\,b"], Request(source="S", mountpoint="D", words=("log_file=/a,b",))),
        (["S", "D", "-o", 'log_file="/a,b",ro'], Request(source="S", mountpoint="D", words=("log_file=/a,b", "ro"))),
        (["mount.layerfs", "--", "-S", "D"], Request(source="-S", mountpoint="D")),
    ],
)
def test_the_words_of_mount8(arguments: list[str], expected: Request) -> None:
    """In whatever order they come; commas can be escaped or in quotes."""
    assert parse(arguments) == expected


def test_variables_of_the_environment() -> None:
    """`env.NAME=VALUE` is no option: it becomes a variable, and is not shown."""
    request = parse(["S", "D", "-o", r"env.AWS_SECRET_ACCESS_KEY=open=se\,same,ro,env.X="])
    assert request.words == ("ro",)
    assert request.environment == {"AWS_SECRET_ACCESS_KEY": "open=se,same", "X": ""}
    assert "open" not in repr(request)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["S"], "got 1"),
        (["S", "D", "E"], "got 3"),
        (["S", "D", "-x"], "-x"),
        (["S", "D", "-o"], "-o"),
        (["S", "D", "-t", "ext4"], "ext4"),
        (["S", "D", "-o", "remount,ro"], "remount"),
        (["S", "D", "-N", "/proc/1/ns/mnt"], "nsenter --mount=/proc/1/ns/mnt"),
    ],
)
def test_what_cannot_be_done(arguments: list[str], named: str) -> None:
    """Is refused with the reason."""
    with pytest.raises(HelperUsage, match=named):
        parse(arguments)


def test_sloppy_is_not_careless() -> None:
    """`-s` is for words that layerfs does not know, not for its own with a wrong value."""
    request = parse(["S", "D", "-s", "-o", "umask=99"])
    assert request.words == ("umask=99",)


def test_what_it_asks_of_layerfs_mount() -> None:
    """Words are escaped again, and a source that looks like an option is none."""
    request = Request(source="-S", mountpoint="D", words=("log_file=/a,b\\", "ro"))
    assert request.mount_arguments() == ["--daemon", "-o", r"log_file=/a\,b\\,ro", "--", "-S", "D"]


@pytest.mark.parametrize(
    ("program", "arguments", "expected"),
    [
        ("/sbin/mount.layerfs", ["ls", "D"], True),
        ("/sbin/mount.fuse.layerfs", ["S", "D"], True),
        ("/usr/bin/layerfs", ["S", "/dev/fd/3", "-o", "rw"], True),
        ("/usr/bin/layerfs", ["mount.layerfs", "S", "D"], True),
        ("/usr/bin/layerfs", ["mount", "S", "-o", "D"], False),
        ("/usr/bin/layerfs", ["mount", "S", "D", "-o", "rw"], False),
        ("/usr/bin/layerfs", ["S", "D"], False),
        ("/usr/bin/layerfs", [], False),
    ],
)
def test_who_calls(program: str, arguments: list[str], expected: bool) -> None:
    """By the name of the program, or in the form that only mount.fuse3 uses."""
    assert is_called(program, arguments, COMMANDS) is expected


def test_an_invalid_word_is_left_to_layerfs_mount() -> None:
    """Which has the one parser of options."""
    assert parse(["S", "D", "-o", "bogus"]).words == ("bogus",)
    with pytest.raises(InvalidOption):
        from layerfs.config import parse_mount_options

        parse_mount_options("bogus")
