"""A registry's own configuration, understood as the registry does."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from layerfs.driver.azure_options import AzureOptions
from layerfs.driver.gcs_options import GcsOptions
from layerfs.driver.s3_options import S3Options
from layerfs.errors import ManifestInvalidUrl
from layerfs.manifest import Descriptor
from layerfs.registry_config import InvalidConfiguration, RegistryConfig, load_registry_config

Load = Callable[..., RegistryConfig]

#: All of them are called so that a leak is found by one word.
SECRET = "open-sesame"  # noqa: S105

MEBIBYTE = 1 << 20


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Reads a configuration without `version`, with the variables of an environment."""

    def load(text: str, *, whole: bool = False, **environment: str) -> RegistryConfig:
        path = tmp_path / "config.yml"
        path.write_text(text if whole else f"version: 0.1\n{text}")
        return load_registry_config(str(path), environment)

    return load


def refusal(load: Load, text: str, **options: object) -> str:
    """What is said of a configuration that cannot be used: one line, with the file and without secrets."""
    with pytest.raises(InvalidConfiguration) as raised:
        load(text, **options)
    said = str(raised.value)
    assert "config.yml'" in said
    assert "\n" not in said
    assert SECRET not in said
    return said


# --- files -------------------------------------------------------------------------------------------------------


def test_the_configuration_that_debian_ships() -> None:
    """The file of the package docker-registry."""
    found = load_registry_config("/etc/docker/registry/config.yml", {})
    assert (found.name, found.storage) == ("/var/lib/docker-registry", "/var/lib/docker-registry")
    assert (found.allow_delete, found.read_only, found.cache, found.warnings) == (True, False, None, ())


def test_all_that_a_registry_can_have(load: Load) -> None:
    """What is not about storage is no concern of ours, whatever its keys are."""
    found = load(
        """
log: {level: debug, fields: {service: registry}, hooks: [{type: mail, options: {from: a@b}}]}
storage:
  filesystem: {rootdirectory: /srv/registry, maxthreads: 100}
  delete: {enabled: false}
  redirect: {disable: true}
  cache: {blobdescriptor: inmemory, blobdescriptorsize: 10000}
  maintenance:
    uploadpurging: {enabled: true, age: 168h, interval: 24h, dryrun: false}
    readonly: {enabled: true}
  tag: {concurrencylimit: 8}
auth: {htpasswd: {realm: basic-realm, path: /etc/htpasswd}}
middleware: {storage: [{name: cloudfront, options: {baseurl: "https://x/"}}]}
http: {addr: ":5000", secret: x, headers: {X-Content-Type-Options: [nosniff]}}
notifications: {endpoints: []}
health: {storagedriver: {enabled: true}}
proxy: {remoteurl: https://registry-1.docker.io}
validation: {manifests: {indexes: {platforms: all}}}
something: {new: true}
"""
    )
    assert found.storage == "/srv/registry"
    assert (found.allow_delete, found.read_only, found.cache, found.warnings) == (False, True, None, ())


def test_a_driver_without_parameters(load: Load) -> None:
    """Is the name of the driver, or its key without a value."""
    for text in ("storage: filesystem", "storage:\n  filesystem:\n", "storage: {filesystem: {}}"):
        assert load(text).storage == "/var/lib/registry"


def test_a_relative_root(load: Load) -> None:
    """Is one for whoever runs in the same directory, so it is said."""
    found = load("storage: {filesystem: {rootdirectory: data}}")
    assert found.storage == os.path.join(os.getcwd(), "data")
    (warning,) = found.warnings
    assert "storage.filesystem.rootdirectory is relative" in warning


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rootdirectory: /a/b/", "/a/b"),
        ('rootdirectory: "/with space"', "/with space"),
        ("rootdirectory: /2026-11-23", "/2026-11-23"),
        ("rootdirectory: /12:30", "/12:30"),
        ("<<: {rootdirectory: /merged}", "/merged"),
        ("rootdirectory: /one\n    rootdirectory: /two", "/two"),
    ],
)
def test_roots(load: Load, text: str, expected: str) -> None:
    """As YAML for Go has them."""
    assert load(f"storage:\n  filesystem:\n    {text}\n").storage == expected


def test_what_nobody_knows_is_only_warned_of(load: Load) -> None:
    """The line says which key; a registry does not look at it either."""
    found = load("storage: {filesystem: {rootdirectory: /a, rootdirectroy: /b}, delete: {enable: true}, cache: {x: 1}}")
    assert found.storage == "/a"
    assert [warning.partition(": ")[2] for warning in found.warnings] == [
        "storage.filesystem.rootdirectroy is unknown, and ignored",
        "storage.delete.enable is unknown, and ignored",
        "storage.cache.x is unknown, and ignored",
    ]


# --- what cannot be used -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "storage: no driver"),
        ("storage: {delete: {enabled: true}}", "no driver"),
        ("storage: {filesystem: , s3: {bucket: b}}", "line 2: storage.s3: more than one driver: filesystem, s3"),
        ("storage: {inmemory: }", "line 2: storage.inmemory: what a registry has in its own memory"),
        ("storage: {swift: {password: open-sesame}}", "line 2: storage.swift: layerfs has no such driver; it has"),
        ("storage: {oss: {bucket: b}}", "it has filesystem, s3 (s3aws), gcs and azure"),
        ("storage: [filesystem]", "line 2: storage: expected keys with values, not a list"),
        ("storage: {filesystem: 5}", "storage.filesystem: expected keys with values, not a number"),
        ("storage:\n  filesystem:\n    rootdirectory: [a]", "line 4: storage.filesystem.rootdirectory: expected text"),
        ("storage:\n  filesystem:\n    rootdirectory:", "line 4: storage.filesystem.rootdirectory: it is empty"),
        ("storage:\n  filesystem:\n    rootdirectory: 1.5", "expected text, not a number: put it in quotes"),
        ("storage: {filesystem: , maintenance: {readonly: true}}", "maintenance.readonly: expected keys with values"),
        ("storage: {filesystem: , maintenance: {readonly: {enabled: 1}}}", "true or false without quotes"),
        ("storage: {s3: {region: r, secretkey: open-sesame}}", "storage.s3.bucket is missing"),
        ("storage: {s3: {bucket: b}}", "storage.s3.region is missing"),
        ("storage: {s3: {bucket: b, region: r, chunksize: lots}}", "s3.chunksize: expected a whole number, not text"),
        ("storage: {s3: {bucket: b, region: r, chunksize: 5}}", "expected a number from 5242880 to"),
        ("storage: {s3: {bucket: b, region: r, secure: maybe}}", "s3.secure: expected true or false, not text"),
        ("storage: {s3: {bucket: b, region: r, objectacl: all}}", "s3.objectacl: expected one of private,"),
        ("storage: {s3: {bucket: b, region: r, storageclass: x}}", "s3.storageclass: expected one of NONE,"),
        ("storage: {s3: {bucket: b, regionendpoint: 'http://u:open-sesame@h'}}", "no credentials belong into it"),
        ("storage: {s3: {bucket: b, regionendpoint: //h}}", "s3.regionendpoint: expected http://HOST[:PORT] or"),
        ("storage: {azure: {container: b, accountname: a, serviceurl: a b}}", "serviceurl: expected http://HOST"),
        ("storage: {s3: {bucket: b, region: r, secretkey: {open-sesame: 1}}}", "secretkey: expected text, not keys"),
        ("storage: {s3: {bucket: b, region: r, secretkey: [open-sesame]}}", "secretkey: expected text, not a list"),
        ("storage: {s3: {bucket: b, region: r, secretkey: 1e5}}", "secretkey: expected text, not a number: put it in"),
        ("storage: {filesystem: , cache: {blobdescriptor: redis}}", "there is no redis.addr (2.x) or redis.addrs"),
        ("storage: {gcs: {}}", "storage.gcs.bucket is missing"),
        ("storage: {gcs: {bucket: b, keyfile: /no/such}}", "gcs.keyfile: cannot read '/no/such': No such file"),
        ("storage: {gcs: {bucket: b, credentials: open-sesame}}", "gcs.credentials: expected keys with values, not"),
        ("a: {b", "line 2: not YAML"),
        ("storage:\n\tfilesystem: x", "line 3: not YAML: found character '\\t' that cannot start any token"),
        ("storage: {s3: {secretkey: *open-sesame}}", "line 2: not YAML: found undefined alias"),
        ("storage: {s3: {secretkey: !open-sesame x}}", "line 2: a tag (!…) means nothing here"),
        ("storage: &a {s3: *a}", "line 2: it is a part of itself"),
        (f"storage: {'[' * 1200}", "nested too deeply"),
    ],
)
def test_what_cannot_be_used(load: Load, text: str, expected: str) -> None:
    """One line says in which line, which key and what was expected of it."""
    assert expected in refusal(load, text)


def test_the_version_has_to_be_that_of_registries(load: Load) -> None:
    """Anything else is some other YAML."""
    for text in ("storage: filesystem", "version: 0.2\nstorage: filesystem", "version: [0.1]"):
        assert "version: expected 0.1" in refusal(load, text, whole=True)
    assert "expected the keys of a registry's configuration" in refusal(load, "just text", whole=True)
    assert "expected the keys of a registry's configuration" in refusal(load, "", whole=True)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Are named, with the reason."""
    (tmp_path / "bytes.yml").write_bytes(b"version: 0.1\nstorage: \xff\xfe\n")
    (tmp_path / "large.yml").write_bytes(b"#" * (2 * MEBIBYTE))
    for name, expected in [
        ("missing.yml", "No such file"),
        ("", "Is a directory"),
        ("bytes.yml", "no text in UTF-8"),
        ("large.yml", "more than 1048576 bytes"),
        ("a\0b", "there can be no such name"),
    ]:
        with pytest.raises(InvalidConfiguration, match=expected):
            load_registry_config(f"{tmp_path}/{name}", {})


_KEYS = st.sampled_from(
    [
        *(
            "filesystem",
            "rootdirectory",
            "s3",
            "bucket",
            "region",
            "secretkey",
            "chunksize",
            "gcs",
            "credentials",
            "azure",
        ),
        *(
            "type",
            "container",
            "accountname",
            "delete",
            "enabled",
            "maintenance",
            "readonly",
            "cache",
            "blobdescriptor",
        ),
        *("addr", "addrs", "tls", "rootcas", "db", "manifests", "urls", "allow", "<<"),
    ]
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["redis", "0.1", "("]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(_KEYS | st.integers(), values, max_size=4),
    max_leaves=20,
)
_SECTIONS = st.dictionaries(st.sampled_from(["storage", "redis", "validation"]), st.dictionaries(_KEYS, _VALUES))
_VARIABLES = st.lists(_KEYS, min_size=1, max_size=4).map(lambda keys: f"REGISTRY_STORAGE_{'_'.join(keys).upper()}")


@settings(deadline=None, max_examples=100)
@given(sections=_SECTIONS, variables=st.dictionaries(_VARIABLES, _VALUES.map(yaml.safe_dump)))
def test_any_values_anywhere(tmp_path_factory: pytest.TempPathFactory, sections: dict, variables: dict) -> None:
    """Are a configuration, or one that cannot be used; nothing else comes of them."""
    path = tmp_path_factory.getbasetemp() / "any-values.yml"
    path.write_text(yaml.safe_dump({"version": 0.1, **sections}))
    with suppress(InvalidConfiguration):
        load_registry_config(str(path), variables)


@settings(deadline=None, max_examples=200)
@given(text=st.binary(max_size=60) | st.text("stor: \n{}[]&*!|>-#\"'%@`,?<~01\tx", max_size=60).map(str.encode))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    """The same."""
    path = tmp_path_factory.getbasetemp() / "any-bytes.yml"
    path.write_bytes(b"version: 0.1\n" + text)
    with suppress(InvalidConfiguration):
        load_registry_config(str(path), {})


# --- the environment ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("storage: {filesystem: {rootdirectory: /a}}", {"STORAGE_FILESYSTEM_ROOTDIRECTORY": "/b"}, "/b"),
        ("storage: {filesystem: }", {"STORAGE_FILESYSTEM_ROOTDIRECTORY": "/b"}, "/b"),
        ("storage: filesystem", {"STORAGE_FILESYSTEM_ROOTDIRECTORY": "/b"}, "/b"),
        ("", {"STORAGE": "filesystem", "STORAGE_FILESYSTEM_ROOTDIRECTORY": "/b"}, "/b"),
        ("", {"STORAGE_FILESYSTEM_ROOTDIRECTORY": "/b"}, "/b"),
        ("storage: {s3: {bucket: b}}", {"STORAGE": "filesystem"}, "/var/lib/registry"),
        ("storage: {s3: {bucket: b}}", {"STORAGE": "{filesystem: {rootdirectory: /c}}"}, "/c"),
        ("storage: {filesystem: {rootdirectory: /a}}", {"STORAGE_FILESYSTEM": "{rootdirectory: /c}"}, "/c"),
        ("storage: {filesystem: {rootdirectory: /a}}", {"storage_filesystem_rootdirectory": "/b"}, "/a"),
        ("storage: {filesystem: {rootdirectory: /a}}", {"HTTP_ADDR": ":1", "": "x", "STORAGES": "{"}, "/a"),
    ],
)
def test_variables_lie_over_the_file(load: Load, text: str, environment: dict[str, str], expected: str) -> None:
    """`REGISTRY_`, then the keys in upper case with `_` between them; the value is YAML."""
    assert load(text, **{f"REGISTRY_{name}": value for name, value in environment.items()}).storage == expected


def test_a_variable_for_another_driver(load: Load) -> None:
    """Makes two drivers, as it does for the registry."""
    said = refusal(load, "storage: filesystem", REGISTRY_STORAGE_S3_BUCKET="b")
    assert "environment variable REGISTRY_STORAGE_S3_BUCKET: storage.s3: more than one driver" in said


def test_an_empty_variable_is_nothing(load: Load) -> None:
    """To the registry it is a root called `<nil>`, which nobody wants."""
    said = refusal(load, "storage: filesystem", REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY="")
    assert "variable REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY: storage.filesystem.rootdirectory: it is empty" in said


def test_a_variable_that_is_no_yaml(load: Load) -> None:
    """Is named, and not quoted."""
    said = refusal(load, "storage: filesystem", REGISTRY_STORAGE_S3_SECRETKEY=f"{{{SECRET}")
    assert "environment variable REGISTRY_STORAGE_S3_SECRETKEY: not YAML" in said


def test_switches_by_variables(load: Load) -> None:
    """Deletion and maintenance, over a file that says nothing of them."""
    found = load(
        "storage: filesystem",
        REGISTRY_STORAGE_DELETE_ENABLED="true",
        REGISTRY_STORAGE_MAINTENANCE_READONLY="{enabled: true}",
    )
    assert (found.allow_delete, found.read_only) == (True, True)
    found = load("storage: {filesystem: , delete: {enabled: true}}", REGISTRY_STORAGE_DELETE_ENABLED="false")
    assert not found.allow_delete
    assert load("storage: filesystem", REGISTRY_STORAGE_MAINTENANCE_READONLY_ENABLED="true").read_only


def test_a_variable_that_reaches_too_deep(load: Load) -> None:
    """Into a parameter's own keys it reaches nothing, in the registry neither: that is said, and how it would."""
    found = load(
        "storage: {filesystem: , maintenance: {readonly: {enabled: false}}}",
        REGISTRY_STORAGE_MAINTENANCE_READONLY_ENABLED="true",
    )
    assert not found.read_only
    (warning,) = found.warnings
    assert "REGISTRY_STORAGE_MAINTENANCE_READONLY_ENABLED does nothing" in warning
    assert "set REGISTRY_STORAGE_MAINTENANCE_READONLY to all of that" in warning


# --- what may be changed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [("true", True), ("yes", True), ("on", True), ("y", True), ("false", False), ("no", False), ("", False)],
)
def test_deletion(load: Load, value: str, expected: bool) -> None:
    """Only where the registry's clients may delete."""
    assert load(f"storage:\n  filesystem:\n  delete:\n    enabled: {value}\n").allow_delete is expected


@pytest.mark.parametrize("value", ['"true"', "1", "[true]"])
def test_deletion_that_only_looks_enabled(load: Load, value: str) -> None:
    """The registry takes nothing but true, and says nothing; so it is off, and that is said."""
    found = load(f"storage: {{filesystem: , delete: {{enabled: {value}}}}}")
    assert not found.allow_delete
    assert "storage.delete.enabled is neither true nor false" in found.warnings[0]


# --- s3 ----------------------------------------------------------------------------------------------------------


def s3(load: Load, parameters: str, driver: str = "s3", **environment: str) -> S3Options:
    """The options that parameters beside bucket and region lead to."""
    found = load(f"storage: {{{driver}: {{bucket: b, region: r-1, {parameters}}}}}", **environment)
    assert isinstance(found.storage, S3Options)
    return found.storage


def test_s3_by_default(load: Load) -> None:
    """Everything else is left to the SDK."""
    for driver in ("s3", "s3aws"):
        assert s3(load, "", driver) == S3Options("b", region="r-1")


def test_all_of_s3(load: Load) -> None:
    """The parameters of 2.8 and 3.x that say where the bytes are and how they are kept."""
    options = s3(
        load,
        "accesskey: AK, secretkey: open-sesame, sessiontoken: open-sesame-too, regionendpoint: 'https://rgw:7480', "
        "forcepathstyle: true, skipverify: true, secure: true, v4auth: true, encrypt: true, keyid: k-1, "
        "chunksize: 10485760, multipartcopychunksize: 33554432, multipartcopymaxconcurrency: 100, "
        "multipartcopythresholdsize: '33554432', rootdirectory: /a/prefix/, storageclass: standard_ia, "
        "objectacl: bucket-owner-full-control, useragent: x, loglevel: off",
    )
    assert options == S3Options(
        "b",
        root_prefix="a/prefix",
        endpoint_url="https://rgw:7480",
        region="r-1",
        path_style=True,
        verify_tls=False,
        multipart_copy_threshold=32 * MEBIBYTE,
        part_size=10 * MEBIBYTE,
        server_side_encryption="aws:kms",
        kms_key_id="k-1",
        storage_class="STANDARD_IA",
        acl="bucket-owner-full-control",
        access_key_id="AK",
        secret_access_key=SECRET,
        session_token=SECRET + "-too",
    )


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("usedualstack: true, accelerate: 'true', usefipsendpoint: true", {"dual_stack", "accelerate", "fips"}),
        ("usedualstack: false", set()),
        ("regionendpoint: 'http://h', usedualstack: true", set()),
    ],
)
def test_variants_of_aws(load: Load, parameters: str, expected: set[str]) -> None:
    """Only with AWS's own endpoints, as in Go's SDK."""
    options = s3(load, parameters)
    assert {name for name in ("dual_stack", "accelerate", "fips") if getattr(options, name)} == expected


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("regionendpoint: h:7480", "https://h:7480"),
        ("regionendpoint: h:7480, secure: false", "http://h:7480"),
        ("regionendpoint: 'http://h:7480', secure: true", "http://h:7480"),
        ("secure: false", None),
    ],
)
def test_endpoints(load: Load, parameters: str, expected: str | None) -> None:
    """`secure` counts where the endpoint does not say it itself."""
    assert s3(load, parameters).endpoint_url == expected


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("encrypt: true", {"ServerSideEncryption": "AES256"}),
        ("encrypt: false, keyid: k", {}),
        ("storageclass: NONE", {}),
        ("storageclass: reduced_redundancy", {"StorageClass": "REDUCED_REDUNDANCY"}),
        ("objectacl: private", {"ACL": "private"}),
    ],
)
def test_how_objects_are_kept(load: Load, parameters: str, expected: dict[str, str]) -> None:
    """In the words of the API."""
    assert s3(load, parameters).object_parameters == expected


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("accesskey: AK", "one of accesskey and secretkey"),
        ("secure: false", "secure is false"),
        ("v4auth: false", "v4auth is false"),
        ("regionendpoint: 'http://h', accelerate: true", "accelerate is only for AWS"),
    ],
)
def test_what_does_not_go_as_configured_is_said(load: Load, parameters: str, expected: str) -> None:
    """A warning each."""
    found = load(f"storage: {{s3: {{bucket: b, region: r, {parameters}}}}}")
    (warning,) = found.warnings
    assert f"storage.s3.{expected}" in warning or f"storage.s3 has {expected}" in warning


def test_numbers_for_names(load: Load) -> None:
    """A bucket or key of digits is a number to YAML, and taken for the digits that a registry makes of it."""
    options = s3(load, "accesskey: 12345, secretkey: 0x1F", REGISTRY_STORAGE_S3_BUCKET="2026")
    assert (options.bucket, options.access_key_id, options.secret_access_key) == ("2026", "12345", "31")


def test_a_name_that_everybody_may_see(load: Load) -> None:
    """Bucket and prefix, and nothing else."""
    found = load(f"storage: {{s3: {{bucket: b, region: r, rootdirectory: /x/, secretkey: {SECRET}}}}}")
    assert found.name == "s3://b/x"
    assert load("storage: {s3: {bucket: b, region: r}}").name == "s3://b"


def test_no_secret_in_what_is_shown(load: Load) -> None:
    """Logs and tracebacks show what objects say of themselves."""
    found = load(
        f"""
storage:
  s3: {{bucket: b, region: r, accesskey: {SECRET}, secretkey: {SECRET}, sessiontoken: {SECRET}, odd: {SECRET}}}
  cache: {{blobdescriptor: redis}}
redis: {{addr: "h:1", password: {SECRET}}}
"""
    )
    assert isinstance(found.storage, S3Options)
    assert found.storage.secret_access_key == SECRET
    assert SECRET not in repr(found) + repr(found.storage) + str(found)


# --- azure -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("accountkey: open-sesame", {"account_key": SECRET}),
        ("realm: core.chinacloudapi.cn, rootdirectory: /a/b", {"realm": "core.chinacloudapi.cn", "root_prefix": "a/b"}),
        ("serviceurl: 'http://h:1/acc', skipverify: true", {"endpoint_url": "http://h:1/acc", "verify_tls": False}),
        (
            "credentials: {type: client_secret, clientid: c, tenantid: t, secret: open-sesame}",
            {"client_id": "c", "tenant_id": "t", "client_secret": SECRET},
        ),
        ("accountkey: open-sesame, credentials: {type: shared_key}", {"account_key": SECRET}),
        ("accountkey: open-sesame, credentials: {type: default_credentials}", {}),
        ("max_retries: 10, retry_delay: 100ms, copy_status_poll_delay: 1s, copy_status_poll_max_retry: 5", {}),
    ],
)
def test_azure(load: Load, parameters: str, expected: dict[str, object]) -> None:
    """The parameters of 2.8 and 3.x."""
    found = load(f"storage: {{azure: {{container: con, accountname: acc, {parameters}}}}}")
    assert found.storage == AzureOptions("con", account="acc", **expected)
    assert found.name == f"az://con/{expected.get('root_prefix', '')}".rstrip("/")
    assert found.warnings == ()
    assert SECRET not in repr(found.storage)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("accountname: a", "storage.azure.container is missing"),
        ("container: c", "storage.azure.accountname is missing"),
        ("container: c, accountname: a, credentials: {type: shared_key}", "storage.azure.accountkey is missing"),
        ("container: c, accountname: a, credentials: {type: client_secret}", "azure.credentials.tenantid is missing"),
        ("container: c, accountname: a, credentials: {type: other}", "credentials.type: expected one of client_secret"),
    ],
)
def test_what_is_missing_for_azure(load: Load, parameters: str, expected: str) -> None:
    """Is named, as the registry would."""
    assert expected in refusal(load, f"storage: {{azure: {{{parameters}}}}}")


# --- gcs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("", {}),
        ("rootdirectory: /a/b, chunksize: 5242880", {"root_prefix": "a/b", "part_size": 5 * MEBIBYTE}),
        ("chunksize: '5242880', maxconcurrency: 50, disablekeepalives: true", {"part_size": 5 * MEBIBYTE}),
        (
            "credentials: {type: service_account, client_id: 123, private_key: open-sesame}",
            {"credentials": {"type": "service_account", "client_id": "123", "private_key": SECRET}},
        ),
        ("keyfile: /dev/null, credentials: {type: x}", {"credentials_file": "/dev/null"}),
    ],
)
def test_gcs(load: Load, parameters: str, expected: dict[str, object]) -> None:
    """The parameters of 2.8 and 3.x; a file of a service account goes before its content."""
    found = load(f"storage: {{gcs: {{bucket: b, {parameters}}}}}")
    assert found.storage == GcsOptions("b", **expected)
    assert found.name == f"gs://b/{expected.get('root_prefix', '')}".rstrip("/")
    assert found.warnings == ()
    assert SECRET not in repr(found.storage)


def test_files_are_found_from_everywhere(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon works in `/`, so relative names are understood before."""
    (tmp_path / "key.json").touch()
    monkeypatch.chdir(tmp_path)
    found = load("storage: {gcs: {bucket: b, keyfile: key.json}}")
    assert found.storage == GcsOptions("b", credentials_file=f"{tmp_path}/key.json")
    cache = "cache: {blobdescriptor: redis}"
    found = load(f"storage: {{filesystem: , {cache}}}\nredis: {{addr: 'h:1', tls: {{certificate: c, key: k}}}}")
    assert (
        found.cache
        == f"rediss://h:1/0?ssl_certfile={quote(f'{tmp_path}/c', '')}&ssl_keyfile={quote(f'{tmp_path}/k', '')}"
    )


# --- the cache ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("redis", "expected"),
    [
        ("addr: localhost:6379", "redis://localhost:6379/0"),
        ("addr: 'h:1', db: 3", "redis://h:1/3"),
        ("addr: 'h:1', password: 'p@:/ss'", "redis://:p%40%3A%2Fss@h:1/0"),
        ("addr: 'h:1', password: 0123", "redis://:0123@h:1/0"),
        ("addr: 'h:1', tls: {enabled: true}", "rediss://h:1/0"),
        ("addrs: ['h:1'], username: me, password: x, db: 0", "redis://me:x@h:1/0"),
        (
            "addrs: ['h:1'], tls: {certificate: /c.crt, key: /k.pem, rootcas: [/ca.pem]}",
            "rediss://h:1/0?ssl_certfile=%2Fc.crt&ssl_keyfile=%2Fk.pem&ssl_ca_certs=%2Fca.pem",
        ),
    ],
)
def test_the_registrys_redis(load: Load, redis: str, expected: str) -> None:
    """By one URL, in which every text is exactly as it was written."""
    assert load(f"storage: {{filesystem: , cache: {{blobdescriptor: redis}}}}\nredis: {{{redis}}}").cache == expected


@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        ("{layerinfo: redis}", "redis://h:1/0"),
        ("{blobdescriptor: inmemory, layerinfo: redis}", None),
        ("{blobdescriptor: }", None),
        ("", None),
    ],
)
def test_which_cache(load: Load, cache: str, expected: str | None) -> None:
    """A Redis that the registry has for something else is none."""
    assert load(f"storage: {{filesystem: , cache: {cache}}}\nredis: {{addr: 'h:1'}}").cache == expected


def test_redis_by_variables(load: Load) -> None:
    """Both generations' names."""
    text = "storage: {filesystem: , cache: {blobdescriptor: redis}}"
    old = {"REGISTRY_REDIS_ADDR": "h:1", "REGISTRY_REDIS_DB": "2", "REGISTRY_REDIS_PASSWORD": "12"}
    assert load(text, **old).cache == "redis://:12@h:1/2"
    for name, value in {"REGISTRY_REDIS_ADDRS": "[h:1]", "REGISTRY_REDIS_ADDRS_0": "h:1"}.items():
        assert load(text, **{name: value}).cache == "redis://h:1/0"


@pytest.mark.parametrize("redis", ["{addrs: ['a:1', 'b:1']}", "{addrs: ['a:1'], mastername: m}"])
def test_a_redis_that_is_many(load: Load, redis: str) -> None:
    """Cannot be used, which is said; the mount works without it."""
    found = load(f"storage: {{filesystem: , cache: {{blobdescriptor: redis}}}}\nredis: {redis}")
    assert found.cache is None
    assert "redis is a cluster or has sentinels" in found.warnings[0]


# --- urls --------------------------------------------------------------------------------------------------------

LAYER = Descriptor("application/vnd.oci.image.layer.v1.tar", None, 0)


def takes(found: RegistryConfig, url: str) -> bool:
    try:
        found.urls.check(LAYER, url)
    except ManifestInvalidUrl:
        return False
    return True


@pytest.mark.parametrize(
    ("validation", "taken"),
    [
        ("{}", []),
        ("{disabled: true}", ["http://a.example/x", "https://b.example/", "https://c.test/"]),
        ("{disabled: true, enabled: true}", []),
        ("{manifests: {urls: {allow: ['^https://']}}}", ["https://b.example/", "https://c.test/"]),
        ("{manifests: {urls: {deny: ['^https://']}}}", ["http://a.example/x"]),
        (r"{manifests: {urls: {allow: ['(?i)//B\.', '[[:alpha:]]\.test/\z'], deny: ['^http:']}}}",
         ["https://b.example/", "https://c.test/"]),
    ],
)  # fmt: skip
def test_rules_for_urls(load: Load, validation: str, taken: list[str]) -> None:
    """None unless they are allowed; the rules are in the syntax of Go."""
    found = load(f"storage: filesystem\nvalidation: {validation}")
    assert [
        url for url in ("http://a.example/x", "https://b.example/", "https://c.test/") if takes(found, url)
    ] == taken


def test_rules_by_variables(load: Load) -> None:
    """A list, or one of its items."""
    rules = load("storage: filesystem", REGISTRY_VALIDATION_MANIFESTS_URLS_ALLOW="['^https:']")
    assert takes(rules, "https://x/")
    rules = load(
        "storage: filesystem\nvalidation: {manifests: {urls: {allow: ['^http:']}}}",
        REGISTRY_VALIDATION_MANIFESTS_URLS_ALLOW_0="^https://",
        REGISTRY_VALIDATION_MANIFESTS_URLS_ALLOW_1="^http://b",
    )
    assert [takes(rules, url) for url in ("https://a/", "http://a/", "http://b/")] == [True, False, True]


def test_a_rule_that_is_none(load: Load) -> None:
    """Is an error, as it is to the registry, with what is wrong in it."""
    for rule, expected in {"(": "missing )", "(?=x)": "(?="}.items():
        said = refusal(load, f"storage: filesystem\nvalidation: {{manifests: {{urls: {{deny: ['{rule}']}}}}}}")
        assert "line 3: validation.manifests.urls.deny" in said
        assert expected in said


def test_a_url_made_to_keep_a_rule_busy(load: Load) -> None:
    """The rule of the registry's own documentation takes Python's expressions for ever, and must not stop a mount."""
    found = load(r"""
storage: filesystem
validation: {manifests: {urls: {allow: ['^https?://([^/]+\.)*example\.com/']}}}
""")
    assert not takes(found, f"https://{'a.' * 2000}/")
    assert takes(found, "https://www.example.com/layer")
