"""Options in the query of a URL, for the drivers of object stores. What is wrong with them is a `ValueError`.

Secrets are never part of a URL: it is seen in `ps` and in shell histories.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from layerfs.errors import UnknownSource

MEBIBYTE: Final = 1 << 20
GIBIBYTE: Final = 1 << 30


def shown(parts: SplitResult) -> str:
    """The URL without what may be a secret, to be repeated in messages."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def check_no_secrets(parts: SplitResult, advice: str) -> None:
    """Raises `UnknownSource` if credentials are in a URL; `advice` says where to put them."""
    names = [name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if "@" in parts.netloc or any(re.search("key|secret|token|password", name) for name in names):
        raise UnknownSource(shown(parts), f"credentials in it would be seen by everybody: put them {advice}")


def check_named(parts: SplitResult, kind: str) -> None:
    """Raises `UnknownSource` for a URL whose bucket or container, which is `kind`, has a name that none can have."""
    if parts.netloc:
        raise UnknownSource(shown(parts), f"{parts.netloc.rpartition('@')[2]!r} cannot be the name of a {kind}")


def parse_query(query: str, parsers: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """The options in a query, each by the parser for its name."""
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in parsers:
            raise ValueError(f"unknown option {name!r}; there are {', '.join(parsers)}")
        try:
            options[name] = parsers[name](text)
        except ValueError as error:
            # Without what stands before an @, which may be a secret that does not belong there.
            raise ValueError(f"{name}={text.rpartition('@')[2]!r}: {error}") from None
    return options


def parse_boolean(text: str) -> bool:
    """true or false, as people write them."""
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise ValueError("expected true or false")
    return known[text.lower()]


def parse_text(text: str) -> str:
    """Anything but nothing."""
    if not text:
        raise ValueError("must not be empty")
    return text


def parse_endpoint_url(text: str) -> str:
    """The address of a server, without credentials in it."""
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("expected http://HOST[:PORT] or https://HOST[:PORT]")
    if "@" in parts.netloc:
        raise ValueError("no credentials belong in it")
    return text


def parse_bytes(text: str) -> int:
    """A number of bytes, with a unit or without."""
    match = re.fullmatch(r"(\d{1,15})(KiB|MiB|GiB)?", text)
    if match is None:
        raise ValueError("expected bytes, as a number or like 64MiB")
    return int(match[1]) * {None: 1, "KiB": 1 << 10, "MiB": MEBIBYTE, "GiB": GIBIBYTE}[match[2]]
