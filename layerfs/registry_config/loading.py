"""What a registry's configuration means for who mounts its storage."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast
from urllib.parse import quote, urlencode

from layerfs.manifest import NO_URLS, Pattern, UrlRules
from layerfs.registry_config.document import read_document
from layerfs.registry_config.drivers import find_storage
from layerfs.registry_config.fields import Fields

if TYPE_CHECKING:
    from layerfs.driver.sources import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryConfig:
    """A registry as its configuration describes it. Nothing in here has been asked of its storage yet."""

    #: The absolute name of the file.
    file: str
    #: The storage as everybody may see it.
    name: str
    #: A directory, or the options of a driver, which can have secrets.
    storage: Storage = field(repr=False)
    #: The registry lets clients delete (`storage.delete.enabled`).
    allow_delete: bool = False
    #: The registry lets nobody write now (`storage.maintenance.readonly.enabled`).
    read_only: bool = False
    #: The Redis that the registry has its descriptors in, by its URL, which can have a password; None without one.
    cache: str | None = field(default=None, repr=False)
    #: Which urls the layers of manifests may have (`validation.manifests.urls`).
    urls: UrlRules = NO_URLS
    #: What an operator should look at; lines without secrets.
    warnings: tuple[str, ...] = ()


def load_registry_config(path: str, environment: Mapping[str, str] | None = None) -> RegistryConfig:
    """The configuration in the file `path`, with the variables `REGISTRY_…` of the environment laid over it.

    Raises `InvalidConfiguration`.
    """
    document = read_document(os.path.abspath(path), os.environ if environment is None else environment)
    storage = Fields(document.file, "storage", document.storage)
    found = find_storage(storage)
    warnings = [*document.warnings, *found.warnings]
    delete, maintenance, cache = (storage.section(key) for key in ("delete", "maintenance", "cache"))
    allow_delete = _allow_delete(delete, warnings)
    read_only = _read_only(maintenance)
    redis_url = _cache(cache, Fields(document.file, "redis", document.section("redis")), warnings)
    for section in (delete, maintenance, cache):
        warnings += [f"{section.path}.{key} is unknown, and ignored" for key in section.unknown]
    return RegistryConfig(
        file=document.file,
        name=found.name,
        storage=found.storage,
        allow_delete=allow_delete,
        read_only=read_only,
        cache=redis_url,
        urls=_url_rules(Fields(document.file, "validation", document.section("validation"))),
        warnings=tuple(f"{document.file!r}: {warning}" for warning in warnings),
    )


def _allow_delete(delete: Fields, warnings: list[str]) -> bool:
    if delete.is_boolean("enabled"):
        return bool(delete.boolean("enabled"))
    if "enabled" in delete:
        warnings.append(
            f"{delete.path}.enabled is neither true nor false without quotes: to the registry that is false"
        )
    return False


def _read_only(maintenance: Fields) -> bool:
    maintenance.ignore("uploadpurging")
    read_only = maintenance.section("readonly")
    if "enabled" in read_only and not read_only.is_boolean("enabled"):
        read_only.refuse("enabled", "expected true or false without quotes, as the registry does")
    return bool(read_only.boolean("enabled"))


# --- the descriptor cache ------------------------------------------------------------------------------------------


def _cache(cache: Fields, redis: Fields, warnings: list[str]) -> str | None:
    """The URL of the Redis that the registry uses, if it uses one."""
    cache.ignore("blobdescriptor", "blobdescriptorsize", "layerinfo")
    # The older name counts only where the newer one is missing.
    kind = cache.text("blobdescriptor") if "blobdescriptor" in cache.keys else cache.text("layerinfo")
    if kind != "redis":
        if kind not in (None, "inmemory"):
            warnings.append(f"{cache.path}.blobdescriptor is neither inmemory nor redis: the registry has no cache")
        return None
    # 2.x has one address, 3.x a list of them.
    addresses = redis.texts("addrs") or [address for address in [redis.written_text("addr")] if address]
    if not addresses:
        cache.refuse("blobdescriptor", "it is redis, but there is no redis.addr (2.x) or redis.addrs (3.x)")
    if len(addresses) > 1 or redis.written_text("mastername"):
        warnings.append(
            "redis is a cluster or has sentinels, which layerfs cannot use: the registry is not told what changes"
        )
        return None
    return _redis_url(addresses[0], redis)


def _redis_url(address: str, redis: Fields) -> str:
    user, password = (quote(redis.written_text(key) or "", safe="") for key in ("username", "password"))
    login = f"{user}:{password}@" if user or password else ""
    database = redis.integer("db", lowest=0, highest=1 << 20) or 0
    tls = redis.section("tls")
    certificates = [*tls.texts("rootcas"), *tls.texts("clientcas")]
    files = {
        "ssl_certfile": tls.written_text("certificate"),
        "ssl_keyfile": tls.written_text("key"),
        "ssl_ca_certs": certificates[0] if certificates else None,
    }
    given = {key: os.path.abspath(value) for key, value in files.items() if value}
    scheme = "rediss" if given or tls.boolean("enabled") else "redis"
    return f"{scheme}://{login}{address}/{database}{'?' + urlencode(given) if given else ''}"


# --- urls of layers ------------------------------------------------------------------------------------------------


def _url_rules(validation: Fields) -> UrlRules:
    """The rules for urls, as the registry's `NewApp` makes them."""
    if validation.boolean("disabled") and not validation.boolean("enabled"):
        return UrlRules()
    urls = validation.section("manifests").section("urls")
    allow, deny = urls.texts("allow"), urls.texts("deny")
    if not allow and not deny:
        return NO_URLS
    return UrlRules(allow=_any_of(urls, "allow", allow), deny=_any_of(urls, "deny", deny))


def _any_of(urls: Fields, key: str, expressions: list[str]) -> Pattern | None:
    """What finds any of the expressions, which are in the syntax of RE2, as Go's are.

    Python's own would understand most of them, but takes for ever where a manifest has a url that is made for it.
    """
    if not expressions:
        return None
    try:
        import re2
    except ImportError:
        urls.refuse(key, "rules for urls need the package google-re2: pip install 'layerfs[urls]'")
    options = re2.Options()
    options.log_errors = False
    for expression in expressions:
        try:
            re2.compile(expression, options)
        except re2.error as error:
            urls.refuse(key, f"{expression!r} is no regular expression of Go: {_reason(error)}")
    return cast("Pattern", re2.compile("|".join(f"(?:{expression})" for expression in expressions), options))


def _reason(error: Exception) -> str:
    text = error.args[0] if error.args else ""
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)
