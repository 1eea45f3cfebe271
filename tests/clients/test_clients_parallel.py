"""Many clients at once in one repository: every tag is there, and complete."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from harness.clients import COPY
from harness.clients_layouts import Image, assert_complete, tags_of, write_layout
from harness.clients_replays import ALL, ReplayProcess
from harness.clients_served import assert_clean, assert_served
from harness.clients_target import Images, Target
from harness.storage import Storage
from harness.stores import Store

#: Seconds for all of them together.
LIMIT = 80


def together(commands: Sequence[Sequence[object]], *, cwd: Path) -> list[str]:
    """Runs commands at the same time; what went wrong, in words."""
    processes = [
        subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
        )
        for command in commands
    ]
    said = [process.communicate(timeout=LIMIT)[0] for process in processes]
    return [
        f"{process.args} ended with {process.returncode}: {text}"
        for process, text in zip(processes, said, strict=True)
        if process.returncode
    ]


def umoci_pushes(layout: Path, tag: str, directory: Path) -> list[object]:
    """A new image with an author and a file, by three runs of umoci, as one command."""
    script = f"""
        umoci new --image "$1:{tag}" && umoci config --image "$1:{tag}" --author {tag} &&
        umoci insert --image "$1:{tag}" "$2" /file
    """
    (directory / tag).write_text(f"file of {tag}\n")
    return ["bash", "-euc", script, "bash", layout, directory / tag]


def push_together(target: Target, images: Images, directory: Path, skopeos: int, umocis: int) -> dict[str, Image]:
    """So many clients push to one new repository; gives what skopeo pushed, by tag."""
    layout = target.new_layout("r")
    pushed = {f"t{number}": images.image() for number in range(skopeos)}
    source = write_layout(directory / "source", pushed)
    commands: list[list[object]] = [[*COPY, f"oci:{source}:{tag}", f"oci:{layout}:{tag}"] for tag in pushed]
    made = [f"u{number}" for number in range(umocis)]
    commands += [umoci_pushes(layout, tag, directory) for tag in made]
    assert together(commands, cwd=directory) == []
    assert set(tags_of(layout)) == {*pushed, *made}
    for tag, image in pushed.items():
        assert_complete(layout, tag, image)
    return pushed | {tag: target.image("r", tag) for tag in made}


def test_ten_skopeos_and_three_umocis(target: Target, images: Images, tmp_path: Path) -> None:
    """13 tags at the end; a registry serves each of them whole, nothing is left behind, nothing is wrong."""
    pushed = push_together(target, images, tmp_path, 10, 3)
    assert target.storage.uploads("r") == []
    served = {("r", tag): image for tag, image in pushed.items()}
    assert_served(target.storage, tmp_path / "registry", served, all_in_use=False)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_many_more(mounts, store: Store, tmp_path: Path, images: Images) -> None:
    """The same with 40 and 10, several times over."""
    for number in range(5):
        storage = Storage.create(store.root(tmp_path / f"storage-{number}"))
        target = Target(storage, mounts(storage))
        directory = tmp_path / f"round-{number}"
        directory.mkdir()
        push_together(target, images, directory, 40, 10)
        assert_clean(storage)


@pytest.mark.timeout(300)
def test_all_kinds_of_clients(target: Target, images: Images, tmp_path: Path) -> None:
    """Three of each client that is replayed, beside three skopeos; also images that share their layers."""
    layout = target.new_layout("r")
    shared = images.index()
    pushed: dict[str, Image] = {}
    processes = []
    with target.mount.tolerates("EPERM"):
        for number in range(3):
            for kind in ALL:
                tag = f"{kind.__name__}-{number}"
                pushed[tag] = shared if number else images.image()
                processes.append(ReplayProcess(kind(layout, pushed[tag], tag)))
        source = write_layout(tmp_path / "source", {f"skopeo-{number}": images.image() for number in range(3)})
        skopeos = [
            subprocess.Popen([*COPY, f"oci:{source}:{tag}", f"oci:{layout}:{tag}"], stdout=subprocess.DEVNULL)
            for tag in tags_of(source)
        ]
        while processes:
            for process in list(processes):
                if process.step() == "done":
                    process.kill()
                    processes.remove(process)
        assert [skopeo.wait(LIMIT) for skopeo in skopeos] == [0] * len(skopeos)
    for tag, image in pushed.items():
        assert_complete(layout, tag, image)
    assert set(tags_of(layout)) == {*pushed, *tags_of(source)}
    assert target.storage.uploads("r") == []
    assert_clean(target.storage)


def test_pushing_to_many_repositories(target: Target, images: Images, tmp_path: Path) -> None:
    """The same image to eight repositories at once, nested ones among them: each has all of it."""
    image = images.index()
    source = write_layout(tmp_path / "source", {"v1": image})
    names = [f"{prefix}{number}" for prefix in ("a/r", "a/r0/deep") for number in range(4)]
    commands = [[*COPY, f"oci:{source}:v1", f"oci:{target.new_layout(name)}:v1"] for name in names]
    assert together(commands, cwd=tmp_path) == []
    for name in names:
        assert_complete(target.layout(name), "v1", image)
    assert_served(target.storage, tmp_path / "registry", {(name, "v1"): image for name in names}, all_in_use=True)
