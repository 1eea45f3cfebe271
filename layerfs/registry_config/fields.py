"""A section of the configuration, read value by value, each as what it has to be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NoReturn

from layerfs.registry_config.document import InvalidConfiguration, Items, Node, Scalar, Section

#: What Go's `strconv.ParseBool` takes, for values that were quoted.
_BOOLEANS: Final = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}


class Fields:
    """The values of a section, by their keys. All methods raise `InvalidConfiguration`.

    What nobody has asked for is unknown: nothing in here knows what it means.
    """

    def __init__(self, file: str, path: str, node: Node | None) -> None:
        """`path` is the section's own, as people write it: `storage.s3`. One that is missing, or null, is empty."""
        self._file = file
        self.path = path
        self._asked: set[str] = set()
        self._nodes: dict[str, Node] = {}
        if isinstance(node, Section):
            self._nodes = node.nodes
        elif node is not None and not _is_null(node):
            self._refuse(node, path, f"expected keys with values, not {_kind(node)}")

    def __contains__(self, key: str) -> bool:
        return self._node(key) is not None

    @property
    def keys(self) -> list[str]:
        """All keys."""
        return list(self._nodes)

    @property
    def unknown(self) -> list[str]:
        """The keys that nobody has asked for."""
        return [key for key in self._nodes if key not in self._asked]

    def ignore(self, *keys: str) -> None:
        """Takes note of keys that are known, and of no use here."""
        self._asked.update(keys)

    def section(self, key: str) -> Fields:
        """The section at a key."""
        self._asked.add(key)
        return Fields(self._file, f"{self.path}.{key}", self._nodes.get(key))

    def text(self, key: str) -> str | None:
        """A text, or a number as go-yaml writes it; None if there is none, or an empty one."""
        node = self._node(key)
        if node is None:
            return None
        value = node.value if isinstance(node, Scalar) else None
        if isinstance(value, bool | float) or not isinstance(value, str | int):
            self._refuse(node, self._at(key), f"expected text, not {_kind(node)}{_quoting(node)}")
        return str(value) or None

    def written_text(self, key: str) -> str | None:
        """A text exactly as it was written, as distribution reads it where it knows that it is a text."""
        node = self._node(key)
        if node is None:
            return None
        if not isinstance(node, Scalar):
            self._refuse(node, self._at(key), f"expected text, not {_kind(node)}")
        return node.text or None

    def needed_text(self, key: str) -> str:
        """As `text`, of what has to be there."""
        text = self.text(key)
        if text is None:
            raise InvalidConfiguration(self._file, "", f"{self._at(key)} is missing, which the registry needs too")
        return text

    def texts(self, key: str) -> list[str]:
        """A list of texts."""
        node = self._node(key)
        if node is None:
            return []
        if not isinstance(node, Items):
            self._refuse(node, self._at(key), f"expected a list of texts, not {_kind(node)}")
        odd = next((item for item in node.nodes if not isinstance(item, Scalar)), None)
        if odd is not None:
            self._refuse(odd, self._at(key), f"expected a list of texts, not of {_kind(odd)}")
        return [item.text for item in node.nodes if isinstance(item, Scalar)]

    def boolean(self, key: str) -> bool | None:
        """True or false, as a driver takes it: also in quotes."""
        node = self._node(key)
        if node is None:
            return None
        value = node.value if isinstance(node, Scalar) else None
        truth = _BOOLEANS.get(value) if isinstance(value, str) else value
        if not isinstance(truth, bool):
            self._refuse(node, self._at(key), f"expected true or false, not {_kind(node)}")
        return truth

    def is_boolean(self, key: str) -> bool:
        """Whether it is true or false without quotes: in some places the registry takes nothing else."""
        node = self._node(key)
        return isinstance(node, Scalar) and isinstance(node.value, bool)

    def integer(self, key: str, *, lowest: int, highest: int) -> int | None:
        """A whole number within limits."""
        node = self._node(key)
        if node is None:
            return None
        value = node.value if isinstance(node, Scalar) else None
        if isinstance(value, str) and re.fullmatch("[0-9]{1,18}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            self._refuse(node, self._at(key), f"expected a whole number, not {_kind(node)}")
        if not lowest <= value <= highest:
            self._refuse(node, self._at(key), f"expected a number from {lowest} to {highest}, not {value}")
        return value

    def choice(self, key: str, choices: Sequence[str], *, upper: bool = False) -> str | None:
        """One of some words."""
        text = self.text(key)
        text = text.upper() if upper and text is not None else text
        if text is not None and text not in choices:
            self.refuse(key, f"expected one of {', '.join(choices)}")
        return text

    def refuse(self, key: str, reason: str) -> NoReturn:
        """Raises `InvalidConfiguration` for the value at `key`; "" is the section itself."""
        node = self._nodes.get(key)
        raise InvalidConfiguration(self._file, node.place if node is not None else "", f"{self._at(key)}: {reason}")

    def _node(self, key: str) -> Node | None:
        """What is at a key; None for null, which is as good as nothing."""
        self._asked.add(key)
        node = self._nodes.get(key)
        return None if node is None or _is_null(node) else node

    def _at(self, key: str) -> str:
        return f"{self.path}.{key}" if key else self.path

    def _refuse(self, node: Node, path: str, reason: str) -> NoReturn:
        raise InvalidConfiguration(self._file, node.place, f"{path}: {reason}")


def _is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.value is None


def _kind(node: Node) -> str:
    """What a value is, without saying it."""
    if isinstance(node, Section):
        return "keys with values"
    if isinstance(node, Items):
        return "a list"
    match node.value:
        case bool():
            return "a truth value"
        case int() | float():
            return "a number"
        case None:
            return "nothing"
        case _:
            return "text"


def _quoting(node: Node) -> str:
    return ": put it in quotes" if isinstance(node, Scalar) else ""
