"""The configuration as it is written: YAML with the place of every value, and the environment laid over it.

Both as distribution does it (`configuration/parser.go`, YAML by go-yaml 2), odd as it may be: a file means here what it
means to the registry. No message quotes a value, which may be a secret, unless it cannot be one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import yaml

from layerfs.errors import LayerfsError

#: Bytes. Real ones have a few thousand; somebody may name a layer by mistake.
_SIZE_LIMIT: Final = 1 << 20

_PREFIX: Final = "REGISTRY_"
#: What is read here, of all that variables can set.
_SECTIONS: Final = ("STORAGE", "REDIS", "VALIDATION")


class InvalidConfiguration(LayerfsError):
    """A configuration file that cannot be used. Says where, and never what the value is if that may be a secret."""

    def __init__(self, file: str, place: str, reason: str) -> None:
        super().__init__(f"{file!r}{f', {place}' if place else ''}: {reason}")


@dataclass(slots=True)
class Scalar:
    """A single value: as go-yaml resolves it, and as it was written."""

    place: str
    value: str | int | float | bool | None = field(repr=False)
    text: str = field(repr=False)


@dataclass(slots=True)
class Items:
    """A list."""

    place: str
    nodes: list[Node] = field(repr=False)


@dataclass(slots=True)
class Section:
    """Values by their keys. `is_implicit`: it was made for a variable, no file has it."""

    place: str
    nodes: dict[str, Node] = field(default_factory=dict, repr=False)
    is_implicit: bool = False


Node: TypeAlias = Scalar | Items | Section


@dataclass(frozen=True, slots=True)
class Document:
    """What file and environment say together, and what an operator should know of how they were understood."""

    file: str
    root: Section
    warnings: tuple[str, ...]

    @property
    def storage(self) -> Node | None:
        """What stands under `storage`; the mere name of a driver is one without parameters."""
        node = self.section("storage")
        return driver_section(node, node.place) if isinstance(node, Scalar) and isinstance(node.value, str) else node

    def section(self, key: str) -> Node | None:
        """What stands at a key of the top."""
        return self.root.nodes.get(key)


def read_document(path: str, environment: Mapping[str, str]) -> Document:
    """The configuration in the file `path` with the overrides of `environment`. Raises `InvalidConfiguration`."""
    root = _parse(_read(path), file=path, place="")
    if not isinstance(root, Section):
        raise InvalidConfiguration(path, "", "expected the keys of a registry's configuration (version, storage, …)")
    _check_version(path, root)
    override = _Overriding(path, root)
    # More specific variables after less specific ones: REGISTRY_STORAGE, then REGISTRY_STORAGE_S3_BUCKET.
    for name in sorted(environment):
        override.apply(name, environment[name])
    return Document(path, root, tuple(override.warnings))


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(_SIZE_LIMIT + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "there can be no such name"
        raise InvalidConfiguration(path, "", f"cannot read the registry's configuration: {reason}") from error
    if len(content) > _SIZE_LIMIT:
        raise InvalidConfiguration(path, "", f"more than {_SIZE_LIMIT} bytes; that is no configuration of a registry")
    return content


def _check_version(path: str, root: Section) -> None:
    version = root.nodes.get("version")
    if not isinstance(version, Scalar) or version.text != "0.1":
        place = version.place if version is not None else ""
        raise InvalidConfiguration(path, place, "version: expected 0.1, the version of all registry configurations")


# --- YAML ----------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Resolves plain values as go-yaml 2 does: `y` is true, `1e3` a number; `12:30` and `2026-11-23` are text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - it is PyYAML's


def _resolve(kind: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(pattern), list(first))


_TRUE: Final = frozenset({"y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE"})
_FALSE: Final = frozenset({"n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE"})
_INTEGER: Final = r"[-+]?(0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO]?[0-7_]+|0|[1-9][0-9_]*)"
_FLOAT: Final = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"

_resolve("bool", f"({'|'.join([*_TRUE, *_FALSE])})$", "yYnNoOtTfF")
_resolve("int", f"{_INTEGER}$", "-+0123456789")
_resolve("float", f"({_FLOAT}|[-+]?\\.(inf|Inf|INF)|\\.(nan|NaN|NAN))$", "-+0123456789.")
_resolve("null", "(~|null|Null|NULL|)$", "~nN\0")
_Loader.yaml_implicit_resolvers[""] = _Loader.yaml_implicit_resolvers["\0"]
_resolve("merge", "<<$", "<")


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+-").lower()
    if re.fullmatch("0[0-7]+", digits):
        return sign * int(digits, 8)
    return sign * int(digits, 0)


_VALUES: Final[Mapping[str, Callable[[str], str | int | float | bool | None]]] = {
    "bool": lambda text: text in _TRUE,
    "int": _integer,
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "null": lambda _: None,
    "str": str,
}


def _parse(content: bytes | str, *, file: str, place: str) -> Node:
    """The first document in `content`. `place` is where all of it stands; else each value has its line."""
    try:
        loader = _Loader(content)
        try:
            node = loader.get_node() if loader.check_node() else None
            return _Composing(loader, file, place).node(node) if node is not None else Scalar(place, None, "")
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}" if mark is not None else ""
        raise InvalidConfiguration(file, place or line, f"not YAML: {_harmless(error.problem)}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InvalidConfiguration(file, place, "not YAML: it has bytes that are no text in UTF-8") from None
    except RecursionError:
        raise InvalidConfiguration(file, place, "not a configuration: it is nested too deeply") from None


def _harmless(problem: str | None) -> str:
    """What is wrong, without the words that it is wrong about: they may be a secret."""
    return re.sub(r"'[^']{3,}'|\"[^\"]{3,}\"", "'…'", problem or "it cannot be understood")


class _Composing:
    """Makes our nodes of PyYAML's, each of these once."""

    def __init__(self, loader: _Loader, file: str, place: str) -> None:
        self._loader = loader
        self._file = file
        self._place = place
        self._made: dict[int, Node] = {}
        self._open: set[int] = set()

    def node(self, node: yaml.Node) -> Node:
        made = self._made.get(id(node))
        if made is not None:
            return made
        if id(node) in self._open:
            raise InvalidConfiguration(self._file, self._place_of(node), "it is a part of itself")
        self._open.add(id(node))
        made = self._made[id(node)] = self._make(node)
        return made

    def _make(self, node: yaml.Node) -> Node:
        place = self._place_of(node)
        if isinstance(node, yaml.MappingNode):
            self._loader.flatten_mapping(node)
            return Section(place, {key.value: self.node(value) for key, value in node.value if _is_text(key)})
        if isinstance(node, yaml.SequenceNode):
            return Items(place, [self.node(item) for item in node.value])
        kind = node.tag.rpartition(":")[2]
        if not node.tag.startswith("tag:yaml.org,2002:") or kind not in _VALUES:
            raise InvalidConfiguration(self._file, place, "a tag (!…) means nothing here; put the value in quotes")
        try:
            return Scalar(place, _VALUES[kind](node.value), node.value)
        except (ValueError, OverflowError):
            raise InvalidConfiguration(self._file, place, f"the value does not fit its tag (!!{kind})") from None

    def _place_of(self, node: yaml.Node) -> str:
        return self._place or f"line {node.start_mark.line + 1}"


def _is_text(key: yaml.Node) -> bool:
    return isinstance(key, yaml.ScalarNode)


# --- the environment -----------------------------------------------------------------------------------------


class _Overriding:
    """Lays variables over a document; each `_` goes a level deeper, in upper case."""

    def __init__(self, file: str, root: Section) -> None:
        self._file = file
        self._root = root
        self.warnings: list[str] = []

    def apply(self, name: str, text: str) -> None:
        first, *rest = name.removeprefix(_PREFIX).split("_") if name.startswith(_PREFIX) else [""]
        if first not in _SECTIONS:
            return
        value = _parse(text, file=self._file, place=f"environment variable {name}")
        if first == "STORAGE":
            self._override_storage(name, rest, value)
        else:
            self._set(self._root, [first, *rest], value)

    def _override_storage(self, name: str, path: list[str], value: Node) -> None:
        nodes = self._root.nodes
        if not path:
            nodes["storage"] = value
            return
        nodes["storage"] = storage = driver_section(nodes.get("storage"), value.place)
        if len(path) > 2 and self._registry_ignores(storage, path):
            self.warnings.append(
                f"{name} does nothing, in the registry neither: it reaches into what the file has at "
                f"storage.{'.'.join(path[:2]).lower()}; set {'_'.join(name.split('_')[:4])} to all of that instead"
            )
            return
        self._set(storage, path, value)

    def _registry_ignores(self, storage: Section, path: list[str]) -> bool:
        """Whether the variable is for something within the value of a driver's parameter.

        To distribution these are maps that could have any key; it leaves them alone, and lists and single values too.
        """
        parameters = _child(storage, path[0])
        found = _child(parameters, path[1]) if isinstance(parameters, Section) else None
        if found is None or (isinstance(found, Scalar) and found.value is None):
            return False
        return not (isinstance(found, Section) and found.is_implicit)

    def _set(self, section: Section, path: list[str], value: Node) -> None:
        """Sets what `path` leads to, making the sections on the way."""
        if len(path) == 1:
            section.nodes[path[0].lower()] = value
            return
        child = _child(section, path[0])
        if isinstance(child, Items):
            _set_item(child, path[1], value)
        elif isinstance(child, Section):
            self._set(child, path[1:], value)
        elif child is None or child.value is None:
            made = Section(value.place, is_implicit=True)
            section.nodes[path[0].lower()] = Items(value.place, [value]) if path[1].isdecimal() else made
            self._set(made, path[1:], value)


def driver_section(storage: Node | None, place: str) -> Section:
    """The section `storage`; it may be the mere name of a driver, or missing."""
    match storage:
        case Section():
            return storage
        case Scalar(place, value=str(name)):
            return Section(place, {name: Section(place)})
        case _:
            return Section(place)


def _child(section: Section, name: str) -> Node | None:
    return next((node for key, node in section.nodes.items() if key.upper() == name), None)


def _set_item(items: Items, index: str, value: Node) -> None:
    if not index.isdecimal():
        return
    if int(index) < len(items.nodes):
        items.nodes[int(index)] = value
    elif int(index) == len(items.nodes):
        items.nodes.append(value)
