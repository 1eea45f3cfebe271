"""JSON from strangers: parsed within bounds, and read field by field with a reason where the type is wrong. No I/O.

Stricter than `json.loads` where two readers could disagree about the same bytes, because what we accept, registries
must read as we do: their garbage collection deletes what it does not find in a manifest, and stops altogether at one
that it cannot read. Go matches the names of fields without regard to case and takes the last of equal ones, so such
names are refused; `null` is the same as nothing, as it is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final, NoReturn

from layerfs.errors import InvalidManifest

#: Levels of nesting. A manifest has six; beyond a few hundred Python's own stack is in danger.
DEPTH_LIMIT: Final = 64

#: Brackets and commas in all. What 4 MiB can hold of them would take a second to parse; so many take 50 ms. An index
#: of ten thousand images has 40,000. Those inside strings count too: looking where strings end would cost as much.
SIZE_LIMIT: Final = 50_000

#: Digits of a whole number; 64 bits have 19.
_DIGITS_LIMIT: Final = 40

#: The range of Go's `int64`, which sizes are read into.
_INT64: Final = range(-(2**63), 2**63)


def parse_json(content: bytes, *, size_limit: int = SIZE_LIMIT) -> object:
    """What `content` says. Raises `InvalidManifest`, and nothing else, within a tenth of a second for 4 MiB.

    `size_limit` is for what may be larger than a manifest, and takes longer in proportion.
    """
    if content.count(b"[") + content.count(b"{") > size_limit or content.count(b",") > size_limit:
        raise InvalidManifest(f"more than {size_limit} objects, lists or values")
    try:
        value = json.loads(
            content.decode(), object_pairs_hook=_unique, parse_int=_parse_int, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError:
        raise InvalidManifest("it is not UTF-8") from None
    except RecursionError:
        raise InvalidManifest(f"nested deeper than {DEPTH_LIMIT} levels") from None
    except json.JSONDecodeError as error:
        raise InvalidManifest(f"it is not JSON: {error}") from None
    if _is_deeper(value, DEPTH_LIMIT):
        raise InvalidManifest(f"nested deeper than {DEPTH_LIMIT} levels")
    return value


class JsonObject:
    """The fields of an object. `where` is its place in the document, for messages; `known` the fields that matter."""

    __slots__ = ("_fields", "_where")

    def __init__(self, value: object, where: str, known: Iterable[str]) -> None:
        """`null` is an object without fields. Raises `InvalidManifest` for anything else than an object."""
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise InvalidManifest(f"{where} must be an object, not {_kind(value)}")
        self._fields: dict[str, Any] = value
        self._where = where
        if not value.keys() <= (names := frozenset(known)):
            self._refuse_similar(names)

    def has(self, name: str) -> bool:
        """Whether there is such a field, and it is not `null`."""
        return self._fields.get(name) is not None

    def value(self, name: str) -> object:
        """Whatever it is; None where there is nothing."""
        return self._fields.get(name)

    def string(self, name: str) -> str:
        """The empty string where there is nothing."""
        value = self._fields.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            self._refuse(name, "a string", value)
        return value

    def integer(self, name: str) -> int:
        """Zero where there is nothing."""
        value = self._fields.get(name)
        if value is None:
            return 0
        if not isinstance(value, int) or isinstance(value, bool) or value not in _INT64:
            self._refuse(name, "a whole number of 64 bits", value)
        return value

    def items(self, name: str) -> list[object]:
        """No items where there is nothing."""
        value = self._fields.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            self._refuse(name, "a list", value)
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        """A list of nothing but strings."""
        if name not in self._fields:
            return ()
        values = self.items(name)
        for value in values:
            if not isinstance(value, str):
                self._refuse(name, "a list of strings", value)
        return tuple(str(value) for value in values)

    def check_string_map(self, name: str) -> None:
        """Raises `InvalidManifest` unless the field, if it is there, has strings for values."""
        fields = self._fields.get(name)
        if fields is None:
            return
        if not isinstance(fields, dict):
            self._refuse(name, "an object", fields)
        for value in fields.values():
            if value is not None and not isinstance(value, str):
                self._refuse(name, "an object of strings", value)

    def _refuse(self, name: str, expected: str, value: object) -> NoReturn:
        raise InvalidManifest(f"{name!r} in {self._where} must be {expected}, not {_kind(value)}")

    def _refuse_similar(self, known: frozenset[str]) -> None:
        folded = {name.casefold(): name for name in known}
        for name in self._fields:
            if name not in known and (similar := folded.get(name.casefold())):
                raise InvalidManifest(f"{name[:200]!r} in {self._where} would be read as {similar!r} by registries")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise InvalidManifest(f"{name[:200]!r} is there twice")
            seen.add(name)
    return fields


def _parse_int(digits: str) -> int:
    if len(digits) > _DIGITS_LIMIT:
        raise InvalidManifest(f"a number of {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidManifest(f"{name} is not JSON")


def _is_deeper(value: object, limit: int) -> bool:
    """Level by level, so that depth costs no stack."""
    level = [value]
    for _ in range(limit):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True


def _kind(value: object) -> str:
    """What JSON calls it; of a number its value, which is short."""
    if value is None:
        return "null"
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)[:40]
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"
