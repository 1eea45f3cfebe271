"""The manual pages, in the language of man(7), made of what `--help` says: so neither can be behind the other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import click

from layerfs import cli_settings, settings
from layerfs.config import RELOADABLE
from layerfs.examples import EXAMPLES, SUMMARIES

_HEAD: Final = '.\\" Made by `layerfs manual`: change the help of the command instead.\n'


@dataclass(frozen=True, slots=True)
class Page:
    """One manual page."""

    name: str
    section: int
    content: str

    @property
    def path(self) -> str:
        """Below a directory of manual pages."""
        return f"man{self.section}/{self.name}.{self.section}"


def pages(group: click.Group) -> Iterator[Page]:
    """Every manual page there is."""
    yield _overview(group)
    for name, command in sorted(group.commands.items()):
        yield _command_page(name, command)
    yield _helper_page(group)
    yield _file_page(group)


def write(group: click.Group, directory: str) -> list[Path]:
    """Writes all pages below a directory such as /usr/share/man; raises `OSError`."""
    written = []
    for page in pages(group):
        path = Path(directory, page.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page.content, encoding="utf-8")
        written.append(path)
    return written


# --- pages ----------------------------------------------------------------------------------------------------------


def _overview(group: click.Group) -> Page:
    commands = "".join(
        f".TP\n\\fBlayerfs\\-{_roff(name)}\\fR(1)\n{_roff(SUMMARIES.get(name, ''))}\n"
        for name in sorted(group.commands)
    )
    return Page(
        "layerfs",
        1,
        _title("LAYERFS", 1)
        + _section("NAME", "layerfs \\- registry storage as directories\n")
        + _section("SYNOPSIS", "\\fBlayerfs\\fR \\fICOMMAND\\fR [\\fIOPTION\\fR]... [\\fIARGUMENT\\fR]...\n")
        + _section("DESCRIPTION", _paragraphs(group.help or ""))
        + _section("COMMANDS", commands)
        + _blocks(group.epilog or "")
        + _environment()
        + _see_also([("mount.layerfs", 8), ("layerfs.toml", 5)]),
    )


def _command_page(name: str, command: click.Command) -> Page:
    context = click.Context(command, info_name=f"layerfs {name}", **command.context_settings)
    usage = " ".join(command.collect_usage_pieces(context))
    content = (
        _title(f"LAYERFS-{name.upper()}", 1)
        + _section("NAME", f"layerfs\\-{_roff(name)} \\- {_roff(SUMMARIES.get(name, ''))}\n")
        + _section("SYNOPSIS", f"\\fBlayerfs {_roff(name)}\\fR {_roff(usage)}\n")
        + _section("DESCRIPTION", _paragraphs(command.help or ""))
        + _section("OPTIONS", _options(command, context))
        + _examples(name)
        + _blocks(_without_examples(command.epilog or ""))
        + _settable(command)
        + _see_also([("layerfs", 1), ("layerfs.toml", 5), *([("mount.layerfs", 8)] if name == "mount" else [])])
    )
    return Page(f"layerfs-{name}", 1, content)


def _helper_page(group: click.Group) -> Page:
    mount = group.commands["mount"]
    words = "".join(_word(name, option) for name, option in sorted(cli_settings.settable_options(mount).items()))
    description = (
        "mount(8) calls it for the type \\fBlayerfs\\fR, and so do the lines of fstab(5). The daemon goes to the "
        "background, and the command returns when the mount answers.\n.PP\n"
        "\\fISOURCE\\fR is what \\fBlayerfs mount\\fR takes: a path or a URL; \\fBnone\\fR with \\fBconfig=\\fR.\n.PP\n"
        "\\fBmount \\-t fuse.layerfs\\fR does the same through mount.fuse3(8), which can also take all rights from the "
        "daemon: see the examples. \\fIDIR\\fR can be \\fI/dev/fd/N\\fR then, which is mounted already.\n"
    )
    special = (
        ".TP\n\\fBro\\fR\nThe same as \\fBread_only\\fR.\n"
        ".TP\n\\fBconfig\\fR=\\fIFILE\\fR\nRead where the storage is from a registry's own configuration.\n"
        ".TP\n\\fBconfig_file\\fR=\\fIFILE\\fR\nRead options from this layerfs.toml(5).\n"
        ".TP\n\\fBenv.\\fINAME\\fR=\\fIVALUE\\fR\nSet a variable of the daemon's environment, such as "
        "\\fBenv.AWS_PROFILE=registry\\fR. Whoever can read fstab reads it.\n.PP\n"
        "A comma in a value is written \\fB\\e,\\fR, or the value stands in double quotes. What other programs read is "
        "ignored: rw, noatime, _netdev, nofail, noauto, user, x\\-systemd.automount and the like. Any other word is an "
        "error, unless \\fB\\-s\\fR is given. \\fBnosuid\\fR and \\fBnodev\\fR always hold. Options cannot be "
        "changed by remounting.\n"
    )
    codes = "".join(
        f".TP\n\\fB{code}\\fR\n{_roff(meaning)}\n"
        for code, meaning in (
            (0, "success"),
            (1, "an option is wrong, or the way that it was called"),
            (2, "the system lacks something: memory, processes"),
            (4, "internal error: please report it, with the log"),
            (8, "interrupted"),
            (32, "mounting failed: the message says why"),
        )
    )
    examples = (
        "A line of /etc/fstab, mounted when somebody looks:\n.PP\n.nf\n"
        "s3://bucket/prefix /mnt/registry layerfs ro,_netdev,nofail,allow_other,x\\-systemd.automount 0 0\n.fi\n.PP\n"
        "A daemon that is another user, without any capability:\n.PP\n.nf\n"
        "mount \\-t fuse.layerfs /var/lib/docker\\-registry /mnt/registry \\-o setuid=registry,drop_privileges,"
        "allow_other,default_permissions,nosuid,nodev\n.fi\n"
    )
    return Page(
        "mount.layerfs",
        8,
        _title("MOUNT.LAYERFS", 8)
        + _section("NAME", "mount.layerfs \\- mount a registry's storage\n")
        + _section(
            "SYNOPSIS",
            "\\fBmount \\-t layerfs\\fR [\\fB\\-sfnv\\fR] [\\fB\\-o\\fR \\fIOPTIONS\\fR] "
            "\\fISOURCE\\fR \\fIDIR\\fR\n.br\n"
            "\\fBmount.layerfs\\fR \\fISOURCE\\fR \\fIDIR\\fR [\\fB\\-sfnv\\fR] [\\fB\\-o\\fR \\fIOPTIONS\\fR]\n",
        )
        + _section("DESCRIPTION", description)
        + _section("MOUNT OPTIONS", words + special)
        + _section("EXIT STATUS", codes)
        + _section("EXAMPLES", examples)
        + _see_also(
            [("layerfs-mount", 1), ("layerfs-install-units", 1), ("layerfs.toml", 5), ("mount", 8), ("fstab", 5)]
        ),
    )


def _word(name: str, option: click.Option) -> str:
    if name in ("daemon", "verbose"):
        return ""
    value = "" if option.is_flag else f"=\\fI{_roff(option.metavar or 'VALUE')}\\fR"
    return f".TP\n\\fB{_roff(name)}\\fR{value}\n{_roff(_help_of(option))}\n"


def _file_page(group: click.Group) -> Page:
    description = (
        f"Options for \\fBlayerfs\\fR, in TOML. \\fI{_roff(settings.DEFAULT_FILE)}\\fR is read if it is there; "
        f"\\fB\\-\\-config\\-file\\fR or the variable \\fB{settings.FILE_VARIABLE}\\fR names another one. Each "
        "command has a table, in which its long options stand under their names, with or without underscores for "
        "dashes. A table in \\fB[mount]\\fR with the name of a mountpoint is for that mount only, and wins over the "
        "others.\n.PP\n"
        "The command line wins over the environment, the environment over the file, and the file over the default: "
        "layerfs\\-config(1) shows what that comes to. A password may stand in a file that not everybody can read.\n"
    )
    example = (
        '.nf\n[mount]\nallow_other = true\nlog_format = "json"\n\n'
        '[mount."/mnt/registry"]\nallow_delete = true\nmetadata_ttl = 5\n\n[check]\njobs = 8\n.fi\n'
    )
    reloading = (
        "\\fBsystemctl reload\\fR, or SIGHUP to the daemon of a mount, reads the file again. From then on hold: "
        + ", ".join(f"\\fB{_roff(name)}\\fR" for name in sorted(RELOADABLE))
        + ". Changes of other options are named in the log, and need a new mount. A file with a mistake changes "
        "nothing.\n"
    )
    tables = "".join(
        f".TP\n\\fB[{_roff(name)}]\\fR\n{_roff(', '.join(sorted(cli_settings.settable_options(command))))}\n"
        for name, command in sorted(group.commands.items())
        if cli_settings.settable_options(command)
    )
    return Page(
        "layerfs.toml",
        5,
        _title("LAYERFS.TOML", 5)
        + _section("NAME", "layerfs.toml \\- configuration file of layerfs\n")
        + _section("DESCRIPTION", description)
        + _section("TABLES", tables)
        + _section("EXAMPLE", example)
        + _section("RELOADING", reloading)
        + _see_also([("layerfs", 1), ("layerfs-config", 1), ("layerfs-mount", 1)]),
    )


# --- sections -------------------------------------------------------------------------------------------------------


def _title(name: str, section: int) -> str:
    return f'{_HEAD}.TH "{name}" "{section}" "" "layerfs {version("layerfs")}" "layerfs"\n'


def _section(name: str, content: str) -> str:
    return f'.SH "{name}"\n{content}' if content else ""


def _see_also(others: list[tuple[str, int]]) -> str:
    return _section("SEE ALSO", ", ".join(f"\\fB{_roff(name)}\\fR({section})" for name, section in others) + "\n")


def _options(command: click.Command, context: click.Context) -> str:
    text = ""
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            text += f".TP\n\\fB{_roff(record[0])}\\fR\n{_roff(record[1])}\n"
    return text


def _help_of(option: click.Option) -> str:
    return option.help or ""


def _examples(name: str) -> str:
    lines = (
        f"{_roff(each.purpose)}:\n.PP\n.nf\n.RS\n{_roff(each.line)}\n.RE\n.fi\n.PP\n" for each in EXAMPLES.get(name, ())
    )
    return _section("EXAMPLES", "".join(lines))


def _without_examples(epilog: str) -> str:
    return "\n\n".join(block for block in re.split(r"\n\s*\n", epilog) if not block.startswith("\b\nExamples:"))


def _blocks(epilog: str) -> str:
    """The sections at the end of a help text: a head, and lines of a code and its meaning."""
    text = ""
    for block in re.split(r"\n\s*\n", epilog):
        lines = block.strip("\b\n").splitlines()
        if not lines:
            continue
        items = (re.fullmatch(r"\s*(\S+)\s+(.*)", line) for line in lines[1:])
        body = "".join(f".TP\n\\fB{_roff(item[1])}\\fR\n{_roff(item[2])}\n" for item in items if item)
        # "Exit codes, those of fsck(8), added up:" is a head with something to say.
        note = lines[0].partition(",")[2].strip(" :")
        text += _section("EXIT STATUS", (f"{_roff(note.capitalize())}.\n" if note else "") + body)
    return text


def _settable(command: click.Command) -> str:
    names = sorted(cli_settings.settable_options(command))
    if not names:
        return ""
    variables = ", ".join(f"\\fB{_roff(cli_settings.variable(name))}\\fR" for name in names)
    return _section("ENVIRONMENT", f"Options that the command line does not say: {variables}.\n")


def _environment() -> str:
    text = (
        "Every option of every command can be set: \\fBLAYERFS_METADATA_TTL=5\\fR is \\fB\\-\\-metadata\\-ttl 5\\fR. "
        f"\\fB{settings.FILE_VARIABLE}\\fR names the configuration file; empty, there is none.\n"
    )
    return _section("ENVIRONMENT", text) + _section("FILES", f"\\fI{_roff(settings.DEFAULT_FILE)}\\fR\n")


# --- text -----------------------------------------------------------------------------------------------------------


def _paragraphs(text: str) -> str:
    parts = []
    for paragraph in re.split(r"\n\s*\n", _dedent(text)):
        if paragraph.startswith("\b"):
            parts.append(f".nf\n{_roff(paragraph[1:].strip(chr(10)))}\n.fi\n")
        else:
            parts.append(_roff(" ".join(paragraph.split())) + "\n")
    return ".PP\n".join(parts)


def _dedent(text: str) -> str:
    return "\n".join(line.strip() if not line.startswith("      ") else line[2:] for line in text.strip().splitlines())


def _roff(text: str) -> str:
    """Text that means itself: no line of it is a request, no backslash an escape, and dashes can be copied."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    escaped = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", escaped)
    return re.sub(r"^([.'])", r"\\&\1", escaped, flags=re.MULTILINE)
