"""The storage that a configuration names: of which driver, and with which of its parameters.

Distribution's drivers and ours have different options, because they work differently. What decides where the bytes are,
how they are reached and how they are kept is taken over; what only says how fast distribution goes about it is not,
except for the sizes of parts, which can matter to a store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from layerfs.driver.azure_options import AzureOptions
from layerfs.driver.gcs_options import GcsOptions
from layerfs.driver.s3_options import LARGEST_COPY, LARGEST_PART, SMALLEST_PART, S3Options
from layerfs.driver.url_options import parse_endpoint_url
from layerfs.registry_config.fields import Fields

if TYPE_CHECKING:
    from layerfs.driver.sources import Storage

#: The keys of `storage` that are no drivers.
_NO_DRIVERS: Final = ("cache", "delete", "maintenance", "redirect", "tag")

_DEFAULT_ROOT: Final = "/var/lib/registry"

#: Distribution's word for a store that knows no storage classes.
_NO_STORAGE_CLASS: Final = "NONE"
_STORAGE_CLASSES: Final = (
    *(_NO_STORAGE_CLASS, "STANDARD", "REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING"),
    *("OUTPOSTS", "GLACIER_IR", "EXPRESS_ONEZONE"),
)
_ACLS: Final = (
    *("private", "public-read", "public-read-write", "authenticated-read", "aws-exec-read"),
    *("bucket-owner-read", "bucket-owner-full-control"),
)


@dataclass(frozen=True, slots=True)
class ConfiguredStorage:
    """Where the registry's storage is: a directory, or the options of a driver. `name` may be shown to everybody."""

    name: str
    storage: Storage
    warnings: list[str] = field(default_factory=list)


def find_storage(storage: Fields) -> ConfiguredStorage:
    """The storage that the section `storage` configures. Raises `InvalidConfiguration`."""
    storage.ignore("redirect", "tag")
    drivers = [key for key in storage.keys if key not in _NO_DRIVERS]
    if len(drivers) != 1:
        problem = f"more than one driver: {', '.join(drivers)}" if drivers else "no driver"
        storage.refuse(drivers[-1] if drivers else "", f"{problem}; a registry has exactly one")
    (name,) = drivers
    if name not in _DRIVERS:
        storage.refuse(name, _why_not(name))
    parameters = storage.section(name)
    found = _DRIVERS[name](parameters)
    found.warnings.extend(f"{parameters.path}.{key} is unknown, and ignored" for key in parameters.unknown)
    return found


def _why_not(name: str) -> str:
    if name == "inmemory":
        return "what a registry has in its own memory cannot be seen from outside"
    return "layerfs has no such driver; it has filesystem, s3 (s3aws), gcs and azure"


# --- filesystem --------------------------------------------------------------------------------------------------


def _filesystem(parameters: Fields) -> ConfiguredStorage:
    parameters.ignore("maxthreads", "useragent")
    root = parameters.text("rootdirectory")
    if root is None:
        if "rootdirectory" in parameters.keys:
            parameters.refuse("rootdirectory", "it is empty")
        root = _DEFAULT_ROOT
    path = os.path.abspath(root)
    warnings = []
    if not os.path.isabs(root):
        warnings.append(
            f"{parameters.path}.rootdirectory is relative: {path!r} is meant only if the registry runs here"
        )
    return ConfiguredStorage(path, path, warnings)


# --- s3 ----------------------------------------------------------------------------------------------------------


def _s3(parameters: Fields) -> ConfiguredStorage:
    parameters.ignore("loglevel", "multipartcopychunksize", "multipartcopymaxconcurrency", "useragent")
    bucket = parameters.needed_text("bucket")
    prefix = (parameters.text("rootdirectory") or "").strip("/")
    endpoint, warnings = _s3_endpoint(parameters)
    region = parameters.text("region")
    if region is None and endpoint is None:
        parameters.needed_text("region")
    copy_threshold = parameters.integer("multipartcopythresholdsize", lowest=0, highest=LARGEST_COPY)
    access_key, secret_key = parameters.text("accesskey"), parameters.text("secretkey")
    session_token = parameters.text("sessiontoken")
    if bool(access_key) != bool(secret_key):
        access_key = secret_key = session_token = None
        warnings.append(
            f"{parameters.path} has one of accesskey and secretkey, but not both: credentials are looked for where the "
            "AWS SDK does, as the registry does"
        )
    options: dict[str, Any] = {
        "part_size": parameters.integer("chunksize", lowest=SMALLEST_PART, highest=LARGEST_PART),
        "multipart_copy_threshold": None if copy_threshold is None else max(copy_threshold, 1),
        "path_style": parameters.boolean("forcepathstyle"),
        "verify_tls": not parameters.boolean("skipverify"),
        **_s3_variants(parameters, endpoint, warnings),
        **_s3_object_settings(parameters),
        "access_key_id": access_key,
        "secret_access_key": secret_key,
        "session_token": session_token,
    }
    given = {name: value for name, value in options.items() if value is not None}
    found = S3Options(bucket, prefix, endpoint, region, **given)
    return ConfiguredStorage(f"s3://{bucket}/{prefix}".rstrip("/"), found, warnings)


def _s3_endpoint(parameters: Fields) -> tuple[str | None, list[str]]:
    """The endpoint if it is not AWS's own, and what does not go as the configuration says."""
    warnings = []
    is_secure = parameters.boolean("secure")
    endpoint = _endpoint(parameters, "regionendpoint", "accesskey and secretkey", is_secure=is_secure is not False)
    if endpoint is None and is_secure is False:
        warnings.append(f"{parameters.path}.secure is false: AWS is talked to by TLS nevertheless")
    if parameters.boolean("v4auth") is False:
        warnings.append(f"{parameters.path}.v4auth is false: requests are signed by version 4 nevertheless")
    return endpoint, warnings


def _s3_variants(parameters: Fields, endpoint: str | None, warnings: list[str]) -> dict[str, bool]:
    names = {"usedualstack": "dual_stack", "accelerate": "accelerate", "usefipsendpoint": "fips"}
    asked = {key: option for key, option in names.items() if parameters.boolean(key)}
    if endpoint is None:
        return dict.fromkeys(asked.values(), True)
    warnings += [f"{parameters.path}.{key} is only for AWS, and there is a regionendpoint: ignored" for key in asked]
    return {}


def _s3_object_settings(parameters: Fields) -> dict[str, str | None]:
    key_id = parameters.text("keyid")
    settings = {"acl": parameters.choice("objectacl", _ACLS)}
    if parameters.boolean("encrypt"):
        settings |= {"server_side_encryption": "aws:kms" if key_id else "AES256", "kms_key_id": key_id}
    storage_class = parameters.choice("storageclass", _STORAGE_CLASSES, upper=True)
    if storage_class != _NO_STORAGE_CLASS:
        settings["storage_class"] = storage_class
    return settings


# --- azure -------------------------------------------------------------------------------------------------------

_AZURE_CREDENTIALS: Final = ("client_secret", "shared_key", "default_credentials")


def _azure(parameters: Fields) -> ConfiguredStorage:
    # How distribution waits for copies and tries again.
    parameters.ignore("copy_status_poll_delay", "copy_status_poll_max_retry", "max_retries", "retry_delay", "useragent")
    container = parameters.needed_text("container")
    prefix = (parameters.text("rootdirectory") or "").strip("/")
    options: dict[str, Any] = {
        "account": parameters.needed_text("accountname"),
        "endpoint_url": _endpoint(parameters, "serviceurl", "accountkey and credentials"),
        "realm": parameters.text("realm"),
        "verify_tls": not parameters.boolean("skipverify"),
        "connection_string": parameters.text("connectionstring"),
        **_azure_credentials(parameters),
    }
    given = {name: value for name, value in options.items() if value is not None}
    return ConfiguredStorage(f"az://{container}/{prefix}".rstrip("/"), AzureOptions(container, prefix, **given))


def _azure_credentials(parameters: Fields) -> dict[str, str | None]:
    key = parameters.text("accountkey")
    credentials = parameters.section("credentials")
    credentials.ignore("clientid", "secret", "tenantid")
    kind = credentials.choice("type", _AZURE_CREDENTIALS)
    if kind == "client_secret":
        return {
            "tenant_id": credentials.needed_text("tenantid"),
            "client_id": credentials.needed_text("clientid"),
            "client_secret": credentials.needed_text("secret"),
        }
    if kind == "shared_key":
        key = parameters.needed_text("accountkey")
    return {"account_key": None if kind == "default_credentials" else key}


# --- gcs ---------------------------------------------------------------------------------------------------------


def _gcs(parameters: Fields) -> ConfiguredStorage:
    parameters.ignore("disablekeepalives", "maxconcurrency", "useragent")
    bucket = parameters.needed_text("bucket")
    prefix = (parameters.text("rootdirectory") or "").strip("/")
    credentials = parameters.section("credentials")
    options: dict[str, Any] = {
        "part_size": parameters.integer("chunksize", lowest=256 * 1024, highest=1 << 30),
        "credentials_file": _readable_file(parameters, "keyfile"),
    }
    if options["credentials_file"] is None and credentials.keys:
        # A service account's file, in YAML: nothing but texts.
        options["credentials"] = {key: credentials.text(key) for key in credentials.keys}
    given = {name: value for name, value in options.items() if value is not None}
    return ConfiguredStorage(f"gs://{bucket}/{prefix}".rstrip("/"), GcsOptions(bucket, prefix, **given))


def _endpoint(parameters: Fields, key: str, secrets: str, *, is_secure: bool = True) -> str | None:
    """The address of a server, which may have no protocol; `secrets` are the keys where its credentials belong."""
    endpoint = parameters.text(key)
    if endpoint is None:
        return None
    if "://" not in endpoint:
        endpoint = f"{'https' if is_secure else 'http'}://{endpoint}"
    if "@" in endpoint:
        parameters.refuse(key, f"no credentials belong into it; there are {secrets}")
    try:
        return parse_endpoint_url(endpoint)
    except ValueError as error:
        parameters.refuse(key, str(error))


def _readable_file(parameters: Fields, key: str) -> str | None:
    """The absolute name of a file, because a daemon works elsewhere. What is in it is the client library's business."""
    name = parameters.text(key)
    if name is None:
        return None
    try:
        with open(name, "rb"):
            return os.path.abspath(name)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "there can be no such name"
        parameters.refuse(key, f"cannot read {name!r}: {reason}")


_DRIVERS: Final[Mapping[str, Callable[[Fields], ConfiguredStorage]]] = {
    "azure": _azure,
    "filesystem": _filesystem,
    "gcs": _gcs,
    "s3": _s3,
    "s3aws": _s3,
}
