"""What the URLs of object stores have in common: a bucket or container, a prefix in it, and options in the query.

Secrets are never part of a URL: it is seen in `ps` and in shell histories.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from layerfs.errors import UnknownSource

MEBIBYTE: Final = 1 << 20
GIBIBYTE: Final = 1 << 30

_Options = TypeVar("_Options")


@dataclass(frozen=True, slots=True)
class UrlForm:
    """How the URLs of one kind of object store are written."""

    #: What stands in the place of a host, by the name of the option that it becomes; and what it can be called.
    kind: str
    names: str
    #: What a URL looks like.
    expected: str
    #: Where credentials belong, since it is not in a URL.
    credentials: str
    #: The options in the query.
    parsers: Mapping[str, Callable[[str], Any]]


def parse_store_url(
    parts: SplitResult, form: UrlForm, make: Callable[..., _Options], given: Mapping[str, Any] | None = None
) -> _Options:
    """The options in a URL, which `make` makes of them and of those that are `given`.

    Raises `UnknownSource`, without repeating what may be a secret.
    """
    _check_no_secrets(parts, form.credentials)
    if parts.fragment:
        # It would be another prefix than was meant.
        raise UnknownSource(_shown(parts), "what follows a # does not belong to a URL: write # as %23")
    if not re.fullmatch(form.names, parts.netloc):
        if parts.netloc:
            name = parts.netloc.rpartition("@")[2]
            raise UnknownSource(_shown(parts), f"{name!r} cannot be the name of a {form.kind}")
        raise UnknownSource(_shown(parts), f"expected {form.expected}")
    named = {form.kind: parts.netloc, "root_prefix": unquote(parts.path).strip("/")}
    try:
        return make(**(named | dict(given or {}) | _parse_query(parts.query, form.parsers)))
    except ValueError as error:
        raise UnknownSource(_shown(parts), str(error)) from error


def _check_no_secrets(parts: SplitResult, advice: str) -> None:
    names = [name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if "@" in parts.netloc or any(re.search("key|secret|token|password|^sig$", name) for name in names):
        raise UnknownSource(_shown(parts), f"credentials in it would be seen by everybody: put them {advice}")


def _shown(parts: SplitResult) -> str:
    """The URL without what may be a secret, to be repeated in messages."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _parse_query(query: str, parsers: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """The options in a query, each by the parser for its name. What is wrong with them is a `ValueError`."""
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in parsers:
            raise ValueError(f"unknown option {name!r}; there are {', '.join(parsers)}")
        try:
            options[name] = parsers[name](text)
        except ValueError as error:
            # Without what stands before an @ or after a ?, which may be a secret that does not belong there.
            raise ValueError(f"{name}={text.partition('?')[0].rpartition('@')[2]!r}: {error}") from None
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
    if parts.scheme not in {"http", "https"} or not parts.hostname or len(text.split()) != 1:
        raise ValueError("expected http://HOST[:PORT] or https://HOST[:PORT]")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("no credentials belong in it, nor anything else that begins with ? or #")
    return text


def parse_bytes(text: str) -> int:
    """A number of bytes, with a unit or without."""
    match = re.fullmatch(r"(\d{1,15})(KiB|MiB|GiB)?", text)
    if match is None:
        raise ValueError("expected bytes, as a number or like 64MiB")
    return int(match[1]) * {None: 1, "KiB": 1 << 10, "MiB": MEBIBYTE, "GiB": GIBIBYTE}[match[2]]
