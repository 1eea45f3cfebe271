"""A line on each command, and how it is used: for `--help` and the manual pages. A test holds them to the commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class Example(NamedTuple):
    """What somebody types, and what for."""

    purpose: str
    line: str


#: What each command is for, in a few words.
SUMMARIES: Final[Mapping[str, str]] = {
    "cat": "write a manifest or layer to standard output",
    "check": "find what is wrong in a storage",
    "completion": "print a script that completes commands in a shell",
    "config": "show the options in force, and where they come from",
    "doctor": "find what keeps layerfs from working on this machine",
    "du": "show what uses how much of a storage",
    "inspect": "show what a manifest and its image say",
    "install-units": "install systemd's units and mount.layerfs",
    "ls": "list repositories, tags, layers or uploads",
    "manual": "write the manual pages",
    "mount": "mount a registry's storage",
    "purge-uploads": "delete uploads that nobody will finish",
    "status": "show mounts, and how they are",
    "top": "show live what a mount does",
    "tree": "show repositories and images as a tree",
    "umount": "unmount, when everything is stored",
    "warm": "fetch images into the cache of mounts",
    "why": "show why something failed in a mount",
}

EXAMPLES: Final[Mapping[str, tuple[Example, ...]]] = {
    "cat": (
        Example("a manifest", "layerfs cat /var/lib/docker-registry team/app:v2"),
        Example("the files of a layer", "layerfs cat s3://bucket/prefix team/app@sha256:9f02… | tar tz"),
    ),
    "check": (
        Example("look for faults, also while registries run", "layerfs check /var/lib/docker-registry"),
        Example("read every byte", "layerfs check --deep --jobs 8 /var/lib/docker-registry"),
    ),
    "completion": (
        Example("bash, for all users", "layerfs completion bash > /etc/bash_completion.d/layerfs"),
        Example("zsh", "layerfs completion zsh > /usr/local/share/zsh/site-functions/_layerfs"),
        Example("fish", "layerfs completion fish > ~/.config/fish/completions/layerfs.fish"),
    ),
    "config": (
        Example("everything", "layerfs config"),
        Example("one mount, for a program", "layerfs config --mountpoint /mnt/registry --format json mount"),
    ),
    "doctor": (
        Example("this machine", "layerfs doctor"),
        Example("and a storage, as the user who is to mount it", "sudo -u registry layerfs doctor s3://bucket/prefix"),
    ),
    "du": (
        Example("all repositories", "layerfs du /var/lib/docker-registry"),
        Example("a page to click through", "layerfs du --html usage.html /var/lib/docker-registry"),
    ),
    "inspect": (
        Example("an image", "layerfs inspect /var/lib/docker-registry team/app:v2"),
        Example("its configuration as it is stored", "layerfs inspect --config /var/lib/docker-registry team/app:v2"),
    ),
    "install-units": (
        Example("what a machine needs", "layerfs install-units"),
        Example(
            "and an automount", "layerfs install-units --mount s3://bucket/prefix /mnt/registry -o _netdev,allow_other"
        ),
        Example(
            "into a package",
            "layerfs install-units --prefix debian/layerfs --unit-directory /usr/lib/systemd/system "
            "--command /usr/bin/layerfs",
        ),
    ),
    "ls": (
        Example("repositories", "layerfs ls -l /var/lib/docker-registry"),
        Example("tags of one", "layerfs ls /var/lib/docker-registry team/app"),
        Example("what an image consists of", "layerfs ls /var/lib/docker-registry team/app:v2"),
    ),
    "manual": (Example("for man(1)", "layerfs manual /usr/local/share/man"),),
    "mount": (
        Example("until Ctrl-C", "layerfs mount /var/lib/docker-registry /mnt/registry"),
        Example(
            "in the background, for all users, without changes",
            "layerfs mount --daemon --allow-other --read-only s3://bucket/prefix /mnt/registry",
        ),
        Example(
            "what a registry is configured with", "layerfs mount --config /etc/docker/registry/config.yml /mnt/registry"
        ),
        Example("a new registry", "layerfs mount --create /srv/registry /mnt/registry"),
        Example("a backup, without unpacking it", "layerfs mount tar::/backup/registry.tar.gz /mnt/backup"),
    ),
    "purge-uploads": (
        Example("what would go", "layerfs purge-uploads --dry-run /var/lib/docker-registry"),
        Example("what is older than a week", "layerfs purge-uploads --older-than 7d /var/lib/docker-registry"),
    ),
    "status": (
        Example("all mounts", "layerfs status"),
        Example("one, for a program", "layerfs status --format json /mnt/registry"),
    ),
    "top": (Example("the only mount there is", "layerfs top"),),
    "tree": (Example("one repository", "layerfs tree /var/lib/docker-registry team/app"),),
    "umount": (
        Example("when nobody uses it", "layerfs umount /mnt/registry"),
        Example("now, although somebody does", "layerfs umount --lazy /mnt/registry"),
    ),
    "warm": (Example("an image", "layerfs warm s3://bucket/prefix team/app:v2"),),
    "why": (Example("after 'Bad message'", "layerfs why /mnt/registry/team/app/_uploads/layer.tar.gz"),),
}


def text(command: str) -> str:
    """The examples of a command for its help, which leaves their lines alone; empty without any."""
    if command not in EXAMPLES:
        return ""
    lines = [f"  # {each.purpose}\n  {each.line}" for each in EXAMPLES[command]]
    return "\b\nExamples:\n" + "\n".join(lines) + "\n"
