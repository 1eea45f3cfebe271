"""Help, manual pages and completion: every command has all three, they agree, and shells understand them."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import select
import shlex
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from harness.commands import run
from harness.mount import COMMAND
from harness.storage import Storage

from layerfs import cli, examples, manual

OK = 0

COMMANDS = sorted(cli.layerfs.commands)


@pytest.fixture(scope="module")
def man(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manual pages, as `layerfs manual` writes them."""
    directory = tmp_path_factory.mktemp("man")
    run(COMMAND, "manual", directory)
    return directory


def page(man: Path, name: str, section: int = 1) -> str:
    """A manual page as man(1) shows it, in which it must find nothing wrong."""
    environment = os.environ | {"MANWIDTH": "200", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    result = run("man", "--warnings=all", "-l", man / f"man{section}/{name}.{section}", env=environment)
    assert result.stderr == ""
    return " ".join(result.stdout.split())


def help_of(name: str) -> str:
    """What `layerfs NAME --help` says."""
    return CliRunner().invoke(cli.layerfs, [name, "--help"], prog_name="layerfs").output


def test_the_readme_has_everything() -> None:
    """Every command is in its list, every option of `mount` in its table, and nothing is there that does not exist."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert sorted(set(re.findall(r"^    layerfs ([a-z-]+)", readme, re.MULTILINE))) == COMMANDS
    table = readme.partition("The options of `mount`:")[2].partition("\n\nEvery option")[0]
    in_table = {
        name for cell in re.findall(r"^\|([^|]+)\|", table, re.MULTILINE) for name in re.findall("`(-.*?)`", cell)
    }
    options = [option for option in cli.layerfs.commands["mount"].params if isinstance(option, click.Option)]
    for option in options:
        assert in_table & {*option.opts, *option.secondary_opts}, option.opts
    assert in_table <= {name for option in options for name in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches(name: str) -> None:
    """Each command says in a line what it is for, shows how it is used, and explains every option."""
    shown = help_of(name)
    assert shown.startswith(f"Usage: layerfs {name} ")
    assert "Examples:" in shown
    assert "Exit codes" in shown
    assert name in examples.SUMMARIES
    command = cli.layerfs.commands[name]
    for option in command.params:
        assert not isinstance(option, click.Option) or option.help, f"{name} {option.name} is not explained"


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_can_be_typed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option and argument in an example is one that the command takes."""
    for variable in [each for each in os.environ if each.startswith("LAYERFS_")]:
        monkeypatch.delenv(variable)
    for example in examples.EXAMPLES[name]:
        words = shlex.split(re.split(r" [|>] ", example.line)[0])
        words = words[words.index("layerfs") :]
        assert words[:2] == ["layerfs", name]
        arguments = words[2:]
        if "--config" in arguments and name == "mount":
            arguments[arguments.index("--config") + 1] = "/dev/null"
            continue
        # Names of digests are cut off in examples.
        arguments = [re.sub(r"sha256:\w+…", "sha256:" + "0" * 64, word) for word in arguments]
        cli.layerfs.commands[name].make_context(name, arguments)


def test_the_list_of_commands() -> None:
    """Shows a summary of each that is not cut off."""
    said = run(COMMAND, "--help").stdout
    for name in COMMANDS:
        assert f"{name} " in said
        assert examples.SUMMARIES[name] in said
    assert {*examples.SUMMARIES} == {*COMMANDS} == {*examples.EXAMPLES}


@pytest.mark.parametrize("name", COMMANDS)
def test_manual_pages(man: Path, name: str) -> None:
    """Each command has one, with all its options and exit codes."""
    shown = page(man, f"layerfs-{name}")
    assert f"layerfs-{name} - {examples.SUMMARIES[name]}" in shown
    assert "EXIT STATUS" in shown
    for option in re.findall(r"^  .*?(--[a-z-]+)", help_of(name), re.MULTILINE):
        assert option in shown
    for example in examples.EXAMPLES[name]:
        assert " ".join(example.line.replace("…", "...").split()) in shown


def test_the_other_manual_pages(man: Path) -> None:
    """The overview, the helper of mount(8), and the configuration file."""
    overview = page(man, "layerfs")
    assert all(f"layerfs-{name}(1)" in overview for name in COMMANDS)
    helper = page(man, "mount.layerfs", 8)
    assert "metadata_ttl=SECONDS" in helper
    assert "drop_privileges" in helper
    assert "x-systemd.automount" in helper
    file = page(man, "layerfs.toml", 5)
    assert '[mount."/mnt/registry"]' in file
    assert "operation_timeout" in file


def test_one_source(man: Path) -> None:
    """The pages on disk are what the commands are now."""
    for each in manual.pages(cli.layerfs):
        assert (man / each.path).read_text() == each.content


# --- completion -------------------------------------------------------------------------------------------------

SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(layerfs completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -U compinit; compinit -u -D; eval "$(layerfs completion zsh)"'),
    "fish": (["fish", "--no-config", "-i"], "layerfs completion fish | source"),
}


class Terminal:
    """A shell with somebody at its keyboard."""

    def __init__(self, argv: list[str], directory: Path) -> None:
        self._seen = ""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LAYERFS_")}
        environment |= {
            "PATH": f"{COMMAND.parent}:{os.environ['PATH']}",
            "TERM": "xterm",
            "HOME": str(directory),
            "PS1": "$ ",
            "COLUMNS": "200",
        }
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.chdir(directory)
            os.execvpe(argv[0], argv, environment)  # noqa: S606

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def wait_for(self, text: str, *, seconds: float = 20) -> str:
        """Returns what came up to and with `text`."""
        deadline = time.monotonic() + seconds
        while text not in self._seen:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {text!r} in {self._seen!r}"
            self._seen += os.read(self._fd, 4096).decode(errors="replace")
        seen, _, self._seen = self._seen.partition(text)
        return seen

    def close(self) -> None:
        os.close(self._fd)
        os.kill(self._pid, 9)
        os.waitpid(self._pid, 0)


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_in_a_shell(shell: str, tmp_path: Path) -> None:
    """Commands, options, values and names of files are completed by the tabulator key."""
    argv, setup = SHELLS[shell]
    (tmp_path / "storage-of-mine").mkdir()
    terminal = Terminal(argv, tmp_path)
    try:
        terminal.type(f"{setup}; echo prepa''red\n")
        terminal.wait_for("prepared")
        # What is typed is no command and no option until it is completed.
        terminal.type("layerfs purge-up\t--dry\tstorage-of\t\n")
        said = terminal.wait_for("no registry storage")
        assert "storage-of-mine" in said
        terminal.type("layerfs mount --log-level warn\t--umask 9 a b\n")
        terminal.wait_for("invalid umask '9'")
    finally:
        terminal.close()


def test_completion_of_repositories(tmp_path: Path) -> None:
    """Names in a storage on this machine, and tags; of any other there are none, and nothing is asked."""
    storage = Storage.create(tmp_path / "storage")
    for name in ("team/app", "team/app/nested", "team/tool", "other"):
        storage.make_repository(name)
    for tag in ("v1", "v2", "w"):
        (storage.repository("team/app") / "_manifests/tags" / tag / "current").mkdir(parents=True)

    def completed(*words: object) -> list[str]:
        variables = {
            "_LAYERFS_COMPLETE": "fish_complete",
            "COMP_WORDS": " ".join(["layerfs", *map(str, words)]),
            "COMP_CWORD": str(words[-1]),
        }
        said = run(COMMAND, env=os.environ | variables).stdout
        return [line.partition(",")[2].partition("\t")[0] for line in said.splitlines() if line.startswith("plain,")]

    assert completed("ls", storage.root, "te") == ["team/app", "team/app/nested", "team/tool"]
    assert completed("cat", storage.root, "team/app:v") == ["team/app:v1", "team/app:v2"]
    assert completed("ls", "s3://bucket", "te") == []
    assert completed("ls", tmp_path / "none", "te") == []


# --- mistakes ---------------------------------------------------------------------------------------------------

#: Runs many command lines in one process, which would take minutes in one each, and says how each ends.
FUZZ = """
import json, os, sys
from layerfs import cli
for line in sys.stdin:
    arguments = json.loads(line)
    reading, writing = os.pipe()
    saved = os.dup(2)
    os.dup2(writing, 2)
    try:
        code = cli._run(arguments)
    except BaseException as error:
        code = f"{type(error).__name__}: {error}"
    os.dup2(saved, 2)
    os.close(writing)
    os.close(saved)
    said = os.fdopen(reading, "rb").read().decode(errors="replace")
    print(json.dumps([arguments, code, said]))
"""

#: Without what would be done if it were right by chance, or fails because of mounts that others have.
WORDS = [
    *(name for name in COMMANDS if name not in ("install-units", "manual", "top", "doctor", "status")),
    *("--format", "json", "--umask", "9", "-o", "ro,bogus", "ro", "--config", "--config-file", "/none", "--", "-", ""),
    *("--jobs", "0", "--older-than", "x", "7d", "--deep", "--dry-run", "-x", "--lazy", "--cache", "disk", "\\0", "\n"),
    *("repo:tag", "REPO", "a@sha256:00", "memory://", "s3://", "://", "file://%00", "\udcff", "ü", "x" * 5000, "-v"),
]


def test_mistakes_are_told_in_a_line(tmp_path: Path) -> None:
    """Whatever is typed: an exit code that is documented, a line that says what is wrong, and never a traceback."""
    chosen = random.Random(20261123)
    lines = [[chosen.choice(WORDS) for _ in range(chosen.randint(1, 6))] for _ in range(600)]
    given = "".join(json.dumps(line) + "\n" for line in lines)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LAYERFS_")}
    result = subprocess.run(
        [sys.executable, "-c", FUZZ], input=given, capture_output=True, text=True, cwd=tmp_path, env=environment,
        timeout=100, check=False,
    )  # fmt: skip
    assert result.returncode == OK, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[[")]
    assert len(answers) == len(lines)
    for arguments, code, said in answers:
        assert code in (0, 1, 4, 8, 16, 32), (arguments, code, said)
        assert "Traceback" not in said, (arguments, said)
        if code != OK:
            assert re.fullmatch(r"(layerfs: [^\n]+\n)+", said), (arguments, code, said)
            assert "internal error" not in said, (arguments, said)
