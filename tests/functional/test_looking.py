"""A storage as a whole: `layerfs du`, `layerfs tree`, and the page that `du --html` writes, in a real browser."""

from __future__ import annotations

import fcntl
import html
import json
import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.commands import run
from harness.images import OCI_IMAGE, describe, oci_image, oci_index
from harness.mount import COMMAND
from harness.storage import Storage, digest_of, snapshot
from playwright.sync_api import Browser, Page, expect, sync_playwright

OK, USAGE, FAILED = 0, 1, 32

#: Chromium as a test needs it: no sandbox for root, and nothing that asks the Internet by itself.
CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def layerfs(*argv: object, code: int = OK) -> str:
    result = run(COMMAND, *argv, check=False)
    assert result.returncode == code, result.stderr
    return result.stdout


def json_of(*argv: object, code: int = OK) -> dict:
    return json.loads(layerfs(*argv, "--format", "json", code=code))


def put_manifest(storage: Storage, name: str, document: dict, *tags: str) -> str:
    """Stores a manifest as a registry does."""
    digest = storage.put_blob(json.dumps(document).encode())
    manifests = storage.repository(name) / "_manifests"
    links = [manifests / "revisions/sha256" / digest[7:] / "link"]
    links += [manifests / "tags" / tag / "current/link" for tag in tags]
    for link in links:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.write_text(digest)
    return digest


class Made:
    """A storage of which it is known what is where: `base` in all, `own` in one repository, an image and an index."""

    def __init__(self, root: Path) -> None:
        self.storage = storage = Storage.create(root)
        self.base, self.own, self.alone = os.urandom(400_000), os.urandom(300_000), os.urandom(50_000)
        self.config = json.dumps({"os": "linux", "architecture": "riscv64"}).encode()
        for name in ("library/one", "library/two"):
            storage.make_repository(name)
            storage.put_layer(name, self.base)
            storage.put_layer(name, self.config)
        storage.put_layer("library/one", self.own)
        storage.make_repository("plain")
        storage.put_layer("plain", self.alone)
        storage.put_upload("plain", bytes(7000))
        self.orphan = storage.put_blob(os.urandom(1234))
        layers = [self.base, self.own]
        self.image = oci_image(config=self.config, layers=layers)
        self.image_digest = put_manifest(storage, "library/one", self.image, "v1", "latest")
        child = json.dumps(oci_image(config=self.config, layers=[self.base]), indent=1).encode()
        self.child = put_manifest_bytes(storage, "library/two", child)
        platform = {"os": "linux", "architecture": "s390x"}
        index = oci_index() | {"manifests": [describe(child, OCI_IMAGE, platform=platform)]}
        self.index = put_manifest(storage, "library/two", index, "multi")


def put_manifest_bytes(storage: Storage, name: str, content: bytes) -> str:
    digest = storage.put_blob(content)
    link = storage.repository(name) / "_manifests/revisions/sha256" / digest[7:] / "link"
    link.parent.mkdir(parents=True)
    link.write_text(digest)
    return digest


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    """Nothing that looks changes anything."""
    made = Made(tmp_path / "storage")
    before = snapshot(made.storage.root)
    yield made
    assert snapshot(made.storage.root) == before


# --- du --------------------------------------------------------------------------------------------------------------


def blobs_by_repository(storage: Storage) -> dict[str, dict[str, int]]:
    """What each repository links and is there, by the links alone."""
    repositories = storage.v2 / "repositories"
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for link in [*repositories.glob("**/_layers/*/*/link"), *repositories.glob("**/_manifests/revisions/*/*/link")]:
        name = re.sub("/_(layers|manifests)/.*", "", str(link.relative_to(repositories)))
        blob = storage.blob(link.read_text())
        if blob.is_file():
            found[name][link.read_text()] = blob.stat().st_size
    return found


def test_du_adds_up(fixture_trees: Path) -> None:
    """On what a real registry has stored: every size is what the links and files of the storage say."""
    storage = Storage(fixture_trees / "storage")
    blobs = blobs_by_repository(storage)
    said = json_of("du", storage.root, "--largest", "3")
    for each in said["repositories"]:
        mine = blobs.get(each["repository"], {})
        others = {digest for name, found in blobs.items() if name != each["repository"] for digest in found}
        unique = sum(size for digest, size in mine.items() if digest not in others)
        assert (each["size"], each["unique"]) == (sum(mine.values()), unique), each
        assert each["shared"] == each["size"] - unique
    everything = {digest: size for found in blobs.values() for digest, size in found.items()}
    stored = [path.stat().st_size for path in (storage.v2 / "blobs").glob("*/*/*/data")]
    total = said["total"]
    assert total["size"] == sum(sum(found.values()) for found in blobs.values())
    assert (total["deduplicated"], total["stored"]) == (sum(everything.values()), sum(stored))
    assert (total["orphans"], total["blobs"]) == (len(stored) - len(everything), len(stored))
    largest = sorted(everything.values(), reverse=True)[:3]
    assert [each["size"] for each in said["largest"]] == largest
    assert {each["repository"] for each in said["repositories"]} >= set(blobs)


@pytest.mark.parametrize("name", ["big/layer", "multi/docker-list", "team/app", "team/app-zstd"])
def test_what_du_says_is_freed_is_freed(name: str, storage_copy, tmp_path: Path) -> None:
    """A real registry's garbage collection, after the repository was removed, frees exactly those bytes."""
    storage: Storage = storage_copy()

    def collect() -> int:
        config = tmp_path / "config.yml"
        config.write_text(f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {storage.root}\n")
        run("docker-registry", "garbage-collect", config)
        return sum(path.stat().st_size for path in storage.v2.rglob("data"))

    before = collect()
    freed = {each["repository"]: each["freed"] for each in json_of("du", storage.root)["repositories"]}[name]
    shutil.rmtree(storage.repository(name))
    assert before - collect() == freed


def test_du_of_some_repositories(made: Made) -> None:
    """Only these are shown; but what others share with them still counts as shared."""
    said = json_of("du", made.storage.root, "library/two")
    (only,) = said["repositories"]
    assert only["repository"] == "library/two"
    assert only["shared"] == len(made.base) + len(made.config)
    assert {name for each in said["largest"] for name in each["repositories"]} == {"library/two"}
    assert said["total"]["repositories"] == 3


def test_du_for_people(made: Made) -> None:
    """What frees most is first, and all the figures are there in the unit that was asked for."""
    text = layerfs("du", made.storage.root, "--bytes")
    rows = [line.split() for line in text.splitlines()]
    assert [row[0] for row in rows[1:4]] == ["library/one", "plain", "library/two"]
    assert rows[2][1:] == [str(len(made.alone)), str(len(made.alone)), "0", str(len(made.alone) + 7000), "1", "0"]
    assert digest_of(made.base) in text
    assert "library/one, library/two" in text
    assert "1 of them, 1234, in no repository" in text
    assert "390.6 KiB" in layerfs("du", made.storage.root)


def test_du_of_an_unknown_repository(made: Made) -> None:
    """Is refused, with what there is."""
    result = run(COMMAND, "du", made.storage.root, "library/on", check=False)
    assert (result.returncode, result.stdout) == (USAGE, "")
    assert "there is 'library/one'" in result.stderr


def test_what_cannot_be_looked_at_is_said(made: Made, tmp_path: Path) -> None:
    """And the rest is shown; the exit code says that it is not everything."""
    above = [path for path in made.storage.root.parents if path.stat().st_uid == os.getuid()]
    for path in (*made.storage.root.rglob("*"), made.storage.root, *above):
        if path.stat().st_mode & 0o055 != 0o055:
            path.chmod(path.stat().st_mode | 0o055)
    closed = made.storage.repository("library/two")
    closed.chmod(0)
    try:
        result = run(COMMAND, "du", made.storage.root, "--format", "json", check=False, user=65534, group=65534)
    finally:
        closed.chmod(0o755)
    assert result.returncode == FAILED
    assert "library/two" in result.stderr
    said = json.loads(result.stdout)
    assert [each["repository"] for each in said["repositories"]] == ["library/one", "plain"]
    assert len(said["problems"]) == 1


def test_a_reader_that_goes_away(made: Made) -> None:
    """Ends the command as it ends every Unix tool, without a word."""
    for command in ("du", "tree"):
        script = 'set -o pipefail; "$0" "$1" "$2" | true'
        result = subprocess.run(["bash", "-c", script, COMMAND, command, made.storage.root], capture_output=True)
        assert result.returncode in (0, 141)
        assert result.stderr == b""


@pytest.mark.parametrize("command", [("du",), ("tree",), ("du", "--format", "json"), ("status",)])
@pytest.mark.parametrize(("target", "reason"), [("> /dev/full", "No space left on device"), (">&-", "is closed")])
def test_an_output_that_takes_nothing(made: Made, command: tuple[str, ...], target: str, reason: str) -> None:
    """One line, exit code 32."""
    arguments = [] if command == ("status",) else [made.storage.root]
    argv = ["bash", "-c", f'"$0" "$@" {target}', COMMAND, *command, *arguments]
    result = run(*argv, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (FAILED, 1)
    assert reason in result.stderr


# --- tree ------------------------------------------------------------------------------------------------------------


def test_tree(made: Made) -> None:
    """Repositories, tags, platforms, layers, with what each takes."""
    said = {each["repository"]: each for each in json_of("tree", made.storage.root)["repositories"]}
    (image,) = said["library/one"]["images"]
    assert (image["tags"], image["platform"]) == (["latest", "v1"], "linux/riscv64")
    assert image["parts"] == [
        {"kind": "config", "digest": digest_of(made.config), "size": len(made.config)},
        {"kind": "layer", "digest": digest_of(made.base), "size": len(made.base)},
        {"kind": "layer", "digest": digest_of(made.own), "size": len(made.own)},
    ]
    manifest = made.storage.blob(made.image_digest).stat().st_size
    assert image["size"] == manifest + len(made.config) + len(made.base) + len(made.own)
    (index,) = said["library/two"]["images"]
    assert (index["digest"], index["tags"], index["parts"]) == (made.index, ["multi"], [])
    assert [(child["digest"], child["platform"]) for child in index["manifests"]] == [(made.child, "linux/s390x")]
    assert said["plain"]["images"] == []


def test_tree_for_people(made: Made) -> None:
    """One repository, drawn."""
    text = layerfs("tree", made.storage.root, "library/one").splitlines()
    assert text[0].split()[0] == "library/one"
    assert re.match(r"└── latest, v1  linux/riscv64  \d+\.\d KiB  sha256:", text[1])
    assert [line.split()[1] for line in text[2:]] == ["config", "layer", "layer"]


def test_tree_of_a_damaged_storage(fixture_trees: Path) -> None:
    """What is missing is said to be; nothing stops it."""
    said = json_of("tree", fixture_trees / "damaged")
    parts = [part for each in said["repositories"] for image in each["images"] for part in image["parts"]]
    assert any(part["size"] is None for part in parts)
    assert any(image["problem"] for each in said["repositories"] for image in each["images"])
    assert "missing" in layerfs("tree", fixture_trees / "damaged")


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, without a screen."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
        yield browser
        browser.close()


class Watched:
    """A page, and whatever it asked for or complained of."""

    def __init__(self, page: Page, file: Path) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.url = file.as_uri()
        page.goto(self.url)


@pytest.fixture
def page(made: Made, browser: Browser, tmp_path: Path) -> Iterator[Watched]:
    """The page of `made`. It loads nothing, and nothing goes wrong in it."""
    layerfs("du", made.storage.root, "--html", tmp_path / "page.html")
    watched = Watched(browser.new_page(viewport={"width": 1200, "height": 900}), tmp_path / "page.html")
    yield watched
    assert watched.requests == [watched.url]
    assert watched.complaints == []
    watched.page.close()


def tiles(page: Page) -> list[str]:
    return [label.partition(":")[0] for label in page.locator(".tile").evaluate_all("all => all.map(e => e.ariaLabel)")]


def test_the_page_shows_repositories_by_size(page: Watched, made: Made) -> None:
    """As tiles whose areas are as their sizes, and as rows with what would be freed."""
    assert tiles(page.page) == ["library/one", "library/two", "plain"]
    boxes = page.page.locator(".tile").evaluate_all("all => all.map(e => e.offsetWidth * e.offsetHeight)")
    sizes = {each["repository"]: each["size"] for each in json_of("du", made.storage.root)["repositories"]}
    for name, area in zip(["library/one", "library/two", "plain"], boxes, strict=True):
        assert area / sum(boxes) == pytest.approx(sizes[name] / sum(sizes.values()), rel=0.05)
    expect(page.page.locator("#rows tr").filter(has_text="plain")).to_contain_text("55.7 KiB")
    expect(page.page.locator("#totals")).to_contain_text("1.2 KiB in 1 blob")


def test_clicking_through(page: Watched, made: Made) -> None:
    """Repository, image, layer, and from there to the other repository that has it; and back."""
    shown = page.page
    shown.locator(".tile", has_text="library/one").click()
    expect(shown.locator("#crumbs [aria-current]")).to_have_text("library/one")
    assert tiles(shown) == ["latest, v1 linux/riscv64"]
    shown.locator(".tile").first.click()
    base = shown.locator(".tile", has_text=digest_of(made.base)[:19])
    own = shown.locator(".tile", has_text=digest_of(made.own)[:19])
    assert "shared" in base.get_attribute("class")
    assert "shared" not in own.get_attribute("class")
    base.click()
    details = shown.locator("#details")
    expect(details).to_contain_text(digest_of(made.base))
    expect(details).to_contain_text("in 2 repositories")
    details.get_by_role("button", name="library/two").click()
    expect(shown.locator("#crumbs [aria-current]")).to_have_text("library/two")
    shown.go_back()
    expect(shown.locator("#crumbs [aria-current]")).to_have_text("latest, v1 linux/riscv64")
    shown.locator("#crumbs button").first.click()
    assert tiles(shown) == ["library/one", "library/two", "plain"]


def test_the_keyboard_alone(page: Watched) -> None:
    """Is enough: Tab, arrows, Enter and Escape."""
    shown = page.page
    while not shown.evaluate("document.activeElement.classList.contains('tile')"):
        shown.keyboard.press("Tab")
    focused = "document.activeElement.ariaLabel"
    assert shown.evaluate(focused).startswith("library/one:")
    shown.keyboard.press("ArrowRight")
    assert shown.evaluate(focused).startswith("library/two:")
    shown.keyboard.press("Enter")
    expect(shown.locator("#crumbs [aria-current]")).to_have_text("library/two")
    assert shown.evaluate(focused).startswith("multi:")
    shown.keyboard.press("Enter")
    expect(shown.locator("#crumbs [aria-current]")).to_have_text("multi")
    assert "linux/s390x" in shown.evaluate(focused)
    shown.keyboard.press("Escape")
    shown.keyboard.press("Escape")
    expect(shown.locator("#crumbs [aria-current]")).to_have_text(re.compile("storage$"))
    assert shown.evaluate(focused).startswith("library/one:")
    expect(shown.locator("#said")).to_contain_text("3 parts")


def test_only_names_with(page: Watched) -> None:
    """The picture and the list show what contains the text."""
    page.page.get_by_role("searchbox").fill("TWO")
    assert tiles(page.page) == ["library/two"]
    assert page.page.locator("#rows tr").count() == 1
    page.page.get_by_role("searchbox").fill("no such thing")
    expect(page.page.locator("#map")).to_contain_text("No name here contains that.")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_dark_and_light(page: Watched, theme: str) -> None:
    """As the system says; the button does the other. Letters on tiles can be read in both."""
    shown = page.page
    shown.emulate_media(color_scheme=theme)
    background = "getComputedStyle(document.body).backgroundColor"
    before = shown.evaluate(background)
    assert (_luminance(before) > 0.5) == (theme == "light")
    for _ in range(2):
        for tile in shown.locator(".tile").all():
            text, back = tile.evaluate("e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]")
            lighter, darker = sorted((_luminance(text), _luminance(back)), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, "WCAG AA"
        shown.get_by_role("button", name="Dark or light").click()
    shown.get_by_role("button", name="Dark or light").click()
    assert shown.evaluate(background) != before


def _luminance(color: str) -> float:
    """Of WCAG 2."""
    channels = [int(each) / 255 for each in re.findall(r"\d+", color)[:3]]
    linear = [each / 12.92 if each <= 0.03928 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_more_than_can_be_drawn(browser: Browser, storage: Storage, tmp_path: Path) -> None:
    """The smallest are one tile, of their size, and can be found by their name."""
    for number in range(420):
        storage.put_layer(f"r{number}", b"x" * (1000 - number))
    layerfs("du", storage.root, "--html", tmp_path / "page.html")
    watched = Watched(browser.new_page(viewport={"width": 1200, "height": 900}), tmp_path / "page.html")
    shown = watched.page
    rest = sum(1000 - number for number in range(400, 420))
    area = shown.locator(".tile", has_text="20 smaller ones").evaluate("e => e.offsetWidth * e.offsetHeight")
    whole = shown.locator("#map").evaluate("e => e.offsetWidth * e.offsetHeight")
    everything = sum(1000 - number for number in range(420))
    assert area / whole == pytest.approx(rest / everything, rel=0.1)
    shown.locator(".tile", has_text="20 smaller ones").click()
    shown.keyboard.type("r419")
    assert tiles(shown) == ["r419"]
    shown.keyboard.press("Tab")
    assert watched.complaints == []


def test_many_repositories(browser: Browser, storage: Storage, tmp_path: Path) -> None:
    """Are shown by what their names begin with; a shared layer still leads to each that has it."""
    for number in range(120):
        storage.put_layer(f"team{number % 3}/sub/app{number}", b"%d" % number * 100)
    storage.put_layer("alone", os.urandom(3000))
    for name in ("alone", "team1/sub/app4"):
        storage.put_layer(name, b"shared" * 1000)
    layerfs("du", storage.root, "--html", tmp_path / "page.html")
    watched = Watched(browser.new_page(viewport={"width": 1200, "height": 900}), tmp_path / "page.html")
    shown = watched.page
    assert sorted(tiles(shown)) == ["alone", "team0/", "team1/", "team2/"]
    rows = shown.locator("#rows tr")
    expect(rows.filter(has_text="team2/")).to_contain_text("40 repositories")
    shown.locator(".tile", has_text="alone").click()
    shown.locator(".tile").first.click()
    shown.locator(".tile.shared").click()
    shown.locator("#details").get_by_role("button", name="team1/sub/app4").click()
    expect(shown.locator("#crumbs [aria-current]")).to_have_text("team1/sub/app4")
    assert shown.locator("#crumbs li").all_inner_texts()[1:] == ["team1/", "team1/sub/app4"]
    assert watched.complaints == []


def test_a_hostile_storage(browser: Browser, storage: Storage, tmp_path: Path) -> None:
    """Whatever tags, platforms and paths say stays text."""
    evil = "</script><img src=x onerror=document.title='owned'>"
    storage.make_repository("evil")
    child = json.dumps(oci_image()).encode()
    put_manifest_bytes(storage, "evil", child)
    index = oci_index() | {"manifests": [describe(child, OCI_IMAGE, platform={"os": evil, "architecture": evil})]}
    put_manifest(storage, "evil", index, "v1")
    root = tmp_path / f"a{evil.replace('/', '')}"
    storage.root.rename(root)
    layerfs("du", root, "--html", tmp_path / "page.html")
    content = (tmp_path / "page.html").read_text(encoding="ascii")
    assert content.count("</script>") == 2
    assert "<img" not in content
    watched = Watched(browser.new_page(), tmp_path / "page.html")
    watched.page.locator(".tile").first.click()
    watched.page.locator(".tile").first.click()
    expect(watched.page.locator("#map")).to_contain_text("onerror")
    assert watched.page.title().startswith("layerfs du: ")
    assert watched.requests == [watched.url]
    assert watched.complaints == []
    assert html.escape(evil) not in content


def test_a_page_that_cannot_be_written(made: Made, tmp_path: Path) -> None:
    """One line, no half page, and nothing left behind."""
    result = run(COMMAND, "du", made.storage.root, "--html", tmp_path / "no/page.html", check=False)
    assert (result.returncode, result.stderr.count("\n")) == (FAILED, 1)
    layerfs("du", made.storage.root, "--html", tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".layerfs-")] == []


def test_a_page_for_a_pipe(made: Made, tmp_path: Path) -> None:
    """What is no file is written to, as by any program, and not replaced by one: FIFOs, and /dev/stdout."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 1 << 20)
        layerfs("du", made.storage.root, "--html", pipe)
        assert pipe.is_fifo()
        assert b"</html>" in os.read(reader, 1 << 20)
    finally:
        os.close(reader)


def test_a_page_where_a_symbolic_link_leads(made: Made, tmp_path: Path) -> None:
    """The link stays, and the file that it leads to is written."""
    link, page = tmp_path / "latest.html", tmp_path / "2026.html"
    link.symlink_to(page.name)
    for _ in range(2):
        layerfs("du", made.storage.root, "--html", link)
        assert link.is_symlink()
        assert "</html>" in page.read_text()
        page.write_text("old")
