"""One configuration for both: the real registry and layerfs read the same file, and find the same storage."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import quote

import pytest
from harness.azurite import ACCOUNT, CONTAINER, KEY, azurite
from harness.commands import run
from harness.gcs_server import BUCKET as GCS_BUCKET
from harness.gcs_server import gcs_server
from harness.mount import COMMAND
from harness.object_stores import ACCESS_KEY, BUCKET, SECRET_KEY, gateway
from harness.redis_server import RedisServer
from harness.registry import ConfiguredRegistry
from harness.storage import digest_of

from layerfs.registry_config import load_registry_config

pytestmark = pytest.mark.usefixtures("watchdog")

NOWHERE = "sha256:" + "0" * 64


def listed(config: Path, **variables: str) -> list[str]:
    """The repositories that `layerfs ls --config` lists, with variables in the environment."""
    return run(COMMAND, "ls", "--config", config, env=os.environ | variables).stdout.splitlines()


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    """A directory with two storages, `here` and `there`."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.write_text(f"version: 0.1\nlog: {{level: info}}\n{text}")
    return path


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("storage: {filesystem: {rootdirectory: @/here}}", {"_FILESYSTEM_ROOTDIRECTORY": "@/there"}),
        ("storage: {filesystem: {rootdirectory: @/here}}", {"_FILESYSTEM": "{rootdirectory: @/there}"}),
        ("storage: {filesystem: {rootdirectory: @/here}}", {"": "{filesystem: {rootdirectory: @/there}}"}),
        ("storage: {filesystem: {rootdirectory: @/here}}", {"_FileSystem_RootDirectory": "@/there"}),
        ("storage: filesystem", {"_FILESYSTEM_ROOTDIRECTORY": "@/there"}),
        ("", {"": "filesystem", "_FILESYSTEM_ROOTDIRECTORY": "@/there"}),
        ("storage: {s3: {bucket: b, region: r}}", {"": "filesystem", "_FILESYSTEM_ROOTDIRECTORY": "@/here"}),
        ("storage: {filesystem: {<<: {rootdirectory: @/there}}}", {"_CACHE_BLOBDESCRIPTOR": "inmemory"}),
    ],
)
def test_the_same_root(roots: Path, text: str, variables: dict[str, str]) -> None:
    """What the registry begins under a file and variables, layerfs finds by the same ones."""
    config = write(roots / "config.yml", text.replace("@", str(roots)))
    environment = {f"REGISTRY_STORAGE{name}": value.replace("@", str(roots)) for name, value in variables.items()}
    with ConfiguredRegistry(config, roots / "registry", **environment) as registry:
        registry.post("some/repository")
    assert listed(config, **environment) == ["some/repository"]


@pytest.mark.parametrize(
    ("storage", "variables"),
    [
        ("", {}),
        ("delete: {enabled: true}", {}),
        ("delete: {enabled: on}", {}),
        ("delete: {enabled: 'true'}", {}),
        ("delete: {enabled: true}", {"DELETE_ENABLED": "false"}),
        ("", {"DELETE_ENABLED": "true"}),
        ("", {"DELETE": "{enabled: y}"}),
        ("maintenance: {readonly: {enabled: true}}", {}),
        ("maintenance: {readonly: {enabled: false}}", {"MAINTENANCE_READONLY_ENABLED": "true"}),
        ("maintenance: {readonly: {enabled: true}}", {"MAINTENANCE_READONLY_ENABLED": "false"}),
        ("maintenance: {readonly: {enabled: false}}", {"MAINTENANCE_READONLY": "{enabled: true}"}),
        ("", {"MAINTENANCE": "{readonly: {enabled: true}}", "DELETE": "{enabled: true}"}),
    ],
)
def test_the_same_rights(roots: Path, storage: str, variables: dict[str, str]) -> None:
    """Whether anybody may write, and delete, is what the registry makes of file and variables."""
    text = f"storage:\n  filesystem: {{rootdirectory: {roots}/here}}\n  {storage}\n"
    config = write(roots / "config.yml", text)
    environment = {f"REGISTRY_STORAGE_{name}": value for name, value in variables.items()}
    with ConfiguredRegistry(config, roots / "registry", **environment) as registry:
        may_write = registry.request("POST", "/v2/a/blobs/uploads/").status == 202
        may_delete = registry.delete("a", NOWHERE).status == 404
    found = load_registry_config(str(config), environment)
    # Nothing can be deleted where nothing can be changed; a read-only mount sees to that whatever else is allowed.
    assert (not found.read_only, found.allow_delete and not found.read_only) == (may_write, may_delete)


def test_a_mount_of_what_the_registry_is_configured_with(mounts, roots: Path, payload) -> None:
    """Both see what the other one stores; rules for urls are the registry's."""
    config = write(
        roots / "config.yml",
        f"""
storage: {{filesystem: {{rootdirectory: {roots}/here}}, delete: {{enabled: true}}}}
validation: {{manifests: {{urls: {{allow: ['^https://layers\\.example/']}}}}}}
""",
    )
    with ConfiguredRegistry(config, roots / "registry") as registry:
        pushed = payload(1000)
        digest = registry.push("some/repository", pushed)
        mount = mounts("none", "--config", str(config))
        layers = mount.path / "some/repository/_layers"
        assert (layers / digest).read_bytes() == pushed

        mine = payload(2000)
        (layers / digest_of(mine)).write_bytes(mine)
        assert registry.serves("some/repository", digest_of(mine), mine)

        (layers / digest).unlink()
        assert not (layers / digest).exists()
        _put_foreign_layer(mount, registry, digest_of(mine))


def _put_foreign_layer(mount, registry: ConfiguredRegistry, config_digest: str) -> None:
    for host, is_allowed in (("layers.example", True), ("other.example", False)):
        foreign = {
            "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "size": 5,
            "digest": NOWHERE,
            "urls": [f"https://{host}/layer"],
        }
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "config": {"mediaType": "application/octet-stream", "size": 2000, "digest": config_digest},
                "layers": [foreign],
            }
        ).encode()
        answer = registry.put_manifest("some/repository", host, manifest, json.loads(manifest)["mediaType"])
        assert (answer.status == 201) is is_allowed
        tag = mount.path / f"some/repository/_tags/{host}-too"
        if is_allowed:
            tag.write_bytes(manifest)
            assert tag.read_bytes() == manifest
        else:
            with mount.refuses("EINVAL"), pytest.raises(OSError, match="Invalid argument"):
                tag.write_bytes(manifest)


def test_the_registrys_redis_learns_what_the_mount_stores(mounts, roots: Path, payload) -> None:
    """And its password is nowhere to be seen."""
    with RedisServer(roots / "redis", password="open-sesame") as server:  # noqa: S106
        config = write(
            roots / "config.yml",
            f"""
storage: {{filesystem: {{rootdirectory: {roots}/here}}, cache: {{blobdescriptor: redis}}}}
redis: {{addr: "127.0.0.1:{server.port}", password: open-sesame, db: 0}}
""",
        )
        with ConfiguredRegistry(config, roots / "registry") as registry:
            registry.push("some/repository", payload(10))
        mount = mounts("none", "--config", str(config), "-v")
        content = payload(100)
        (mount.path / "some/repository/_layers" / digest_of(content)).write_bytes(content)
        assert f"blobs::{digest_of(content)}" in server.content()
        assert not shows(mount, "sesame")


# --- object storage ----------------------------------------------------------------------------------------------


@pytest.fixture
def on_s3(roots: Path) -> Path:
    """The configuration of a registry on S3, by the parameters of 2.8."""
    store = gateway()
    return write(
        roots / "config.yml",
        f"""
storage:
  s3:
    bucket: {BUCKET}
    rootdirectory: /tests/{roots.name}
    region: us-east-1
    regionendpoint: {store.endpoint}
    accesskey: {ACCESS_KEY}
    secretkey: {SECRET_KEY}
    secure: false
    chunksize: 5242880
    objectacl: public-read
  delete: {{enabled: true}}
  redirect: {{disable: true}}
""",
    )


def test_the_same_bucket(mounts, on_s3: Path, roots: Path, payload) -> None:
    """With the endpoint, credentials and prefix of the file alone; objects are kept as it says."""
    with ConfiguredRegistry(on_s3, roots / "registry") as registry:
        pushed = payload(1000)
        digest = registry.push("some/repository", pushed)
        assert listed(on_s3) == ["some/repository"]
        mount = mounts("none", "--config", str(on_s3), "-v")
        layers = mount.path / "some/repository/_layers"
        assert (layers / digest).read_bytes() == pushed

        mine = payload(6 << 20)
        (layers / digest_of(mine)).write_bytes(mine)
        assert registry.serves("some/repository", digest_of(mine), mine)
    status = json.loads((mount.path / ".layerfs/status.json").read_text())
    assert (status["source"], status["allow_delete"]) == (f"s3://{BUCKET}/tests/{roots.name}", True)
    assert not shows(mount, SECRET_KEY)
    for key in keys_of(f"tests/{roots.name}/", digest_of(mine).rpartition(":")[2]):
        grants = gateway().client.get_object_acl(Bucket=BUCKET, Key=key)["Grants"]
        assert "READ" in [grant["Permission"] for grant in grants if grant["Grantee"]["Type"] == "Group"], key


def keys_of(prefix: str, word: str) -> list[str]:
    """The keys below a prefix that have a word in them."""
    found = gateway().client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
    keys = [each["Key"] for each in found if word in each["Key"]]
    assert keys
    return keys


def test_credentials_that_are_refused(on_s3: Path) -> None:
    """One line names the bucket and none of the credentials."""
    variables = {
        "REGISTRY_STORAGE_S3_SECRETKEY": "open-sesame",
        "REGISTRY_STORAGE_S3_ACCESSKEY": "nobody",
        "REGISTRY_STORAGE_S3_SESSIONTOKEN": "open-sesame-too",
    }
    result = run(COMMAND, "ls", "--config", on_s3, check=False, env=os.environ | variables)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"cannot read 's3://{BUCKET}/" in result.stderr
    assert result.stderr.count("\n") == 1
    assert "sesame" not in result.stderr


def test_no_log_has_a_session_token(on_s3: Path, roots: Path) -> None:
    """The SDK would log the headers of its requests; and a token is as good as a password."""
    (roots / "mnt").mkdir()
    variables = {"REGISTRY_STORAGE_S3_SESSIONTOKEN": "open-sesame-too", "REGISTRY_STORAGE_S3_SECRETKEY": "open-sesame"}
    command = [COMMAND, "mount", "-v", "--config", on_s3, "--log-file", roots / "log", roots / "mnt"]
    result = run(*command, check=False, env=os.environ | variables)
    assert result.returncode == 1
    log = (roots / "log").read_text()
    assert "cannot mount" in log
    assert "sesame" not in log + result.stderr


def test_a_container_on_azure(mounts, roots: Path, payload) -> None:
    """With the account, key and prefix of the file alone, and the key is nowhere to be seen. (No registry of Debian's
    knows Azure.)"""
    store = azurite()
    config = write(
        roots / "config.yml",
        f"""
storage:
  azure:
    accountname: {ACCOUNT}
    accountkey: {KEY}
    container: {CONTAINER}
    serviceurl: {store.endpoint}
    rootdirectory: /tests/{roots.name}
""",
    )
    link = f"tests/{roots.name}/docker/registry/v2/repositories/some/repository/_layers/sha256/{'0' * 64}/link"
    store.client.upload_blob(link, NOWHERE)
    assert listed(config) == ["some/repository"]
    mount = mounts("none", "--config", str(config), "-v")
    content = payload(100)
    layer = mount.path / "some/repository/_layers" / digest_of(content)
    layer.write_bytes(content)
    assert layer.read_bytes() == content
    assert not shows(mount, KEY, quote(KEY, safe=""))


def test_a_bucket_of_google(roots: Path) -> None:
    """With the prefix of the file; the endpoint is the emulator's, by the variable that registries know too."""
    server = gcs_server()
    config = write(
        roots / "config.yml", f"storage: {{gcs: {{bucket: {GCS_BUCKET}, rootdirectory: /tests/{roots.name}}}}}"
    )
    link = f"tests/{roots.name}/docker/registry/v2/repositories/some/repository/_layers/sha256/{'0' * 64}/link"
    server.put(link, NOWHERE.encode(), "application/octet-stream", {})
    assert listed(config, **server.environment) == ["some/repository"]


def shows(mount, *secrets: str) -> bool:
    """Whether the command line, the table of mounts, the status or the log of a daemon has one of these words."""
    told = [
        Path(f"/proc/{mount.process.pid}/cmdline").read_text(),
        Path("/proc/self/mountinfo").read_text(),
        (mount.path / ".layerfs/status.json").read_text(),
    ]
    mount.stop()
    told += [line.text for line in mount.read_log()]
    return any(secret in text for text in told for secret in secrets)
