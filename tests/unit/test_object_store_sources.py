"""URLs of object stores: what is said in them, what is refused, and what is never repeated."""

from __future__ import annotations

import subprocess
import sys

import pytest

from layerfs.driver.azure_options import AzureOptions, parse_azure_url
from layerfs.driver.gcs_options import GcsOptions, parse_gcs_url
from layerfs.driver.sources import open_driver
from layerfs.errors import UnknownSource
from layerfs.source import display_name

MEBIBYTE = 1 << 20


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("az://registry", AzureOptions("registry")),
        ("az://registry/", AzureOptions("registry")),
        ("az://registry/some/prefix/", AzureOptions("registry", "some/prefix")),
        ("az://registry/a%20b?account=storage1", AzureOptions("registry", "a b", account="storage1")),
        (
            "abfs://registry@storage1.dfs.core.windows.net/prefix",
            AzureOptions("registry", "prefix", account="storage1", realm="core.windows.net"),
        ),
        (
            "abfss://registry@storage1.blob.core.chinacloudapi.cn?block_size=8MiB",
            AzureOptions("registry", account="storage1", realm="core.chinacloudapi.cn", block_size=8 * MEBIBYTE),
        ),
        (
            "az://registry?endpoint_url=https://azurite:10000/devstoreaccount1&verify_tls=false&ca_file=/etc/ca.pem",
            AzureOptions(
                "registry",
                endpoint_url="https://azurite:10000/devstoreaccount1",
                verify_tls=False,
                ca_file="/etc/ca.pem",
            ),
        ),
    ],
)
def test_urls_of_azure(url: str, expected: AzureOptions) -> None:
    """Container, prefix, and what else there is to say."""
    assert parse_azure_url(url) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("gs://registry", GcsOptions("registry")),
        ("gcs://my.registry_1/a/b", GcsOptions("my.registry_1", "a/b")),
        (
            "gs://registry?endpoint_url=http://127.0.0.1:4443&part_size=8MiB&parts_in_flight=2",
            GcsOptions("registry", endpoint_url="http://127.0.0.1:4443", part_size=8 * MEBIBYTE, parts_in_flight=2),
        ),
        (
            "gs://registry/p?credentials_file=/etc/gcs.json&user_project=billing&read_timeout=2.5",
            GcsOptions("registry", "p", credentials_file="/etc/gcs.json", user_project="billing", read_timeout=2.5),
        ),
    ],
)
def test_urls_of_google(url: str, expected: GcsOptions) -> None:
    """Bucket, prefix, and what else there is to say."""
    assert parse_gcs_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "az://",
        "az:///prefix",
        "az://Registry",
        "az://a",
        "az://-registry",
        "az://registry?unknown=1",
        "az://registry/pre#fix",
        "az://registry?account=NOT-ONE",
        "az://registry?realm=nowhere",
        "az://registry?block_size=0",
        "az://registry?block_size=101MiB",
        "az://registry?endpoint_url=ftp://host",
        "az://registry?verify_tls=maybe",
        "az://registry?read_timeout=0",
        "gs://",
        "gs://UPPER",
        "gs://registry/pre#fix?user_project=p",
        "gs://registry?part_size=-1",
        "gs://registry?parts_in_flight=0",
        "gs://registry?parts_in_flight=many",
        "gs://registry?endpoint_url=host:80",
        "gs://registry?read_timeout=inf",
    ],
)
def test_what_cannot_be_meant(url: str) -> None:
    """One line says what is wrong, before anything is asked of anybody."""
    with pytest.raises(UnknownSource) as caught:
        open_driver(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "abfs://registry@a.dfs.core.windows.net/prefix",
        "abfss://registry@storage1/prefix",
        "abfs://registry@127.0.0.1:10000/storage1/prefix",
        "wasbs://registry@Storage1.blob.core.windows.net",
    ],
)
def test_an_account_that_is_none(url: str) -> None:
    """What stands before the @ is a container, no secret: it is said how such a URL is written."""
    with pytest.raises(UnknownSource) as caught:
        open_driver(url)
    assert "CONTAINER@ACCOUNT.dfs.REALM" in str(caught.value)
    assert "3 to 24 lower-case letters and digits" in str(caught.value)
    assert "credentials" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "az://name:hunter2@registry/prefix",
        "az://registry?account_key=hunter2",
        "az://registry?sas_token=hunter2",
        "az://registry?account=storage1&SharedAccessKey=hunter2",
        "az://registry?endpoint_url=https://u:hunter2@host",
        "az://registry?endpoint_url=https://host/account?sig=hunter2",
        "az://registry?endpoint_url=https://host/account%3Fsv=2022-11-02%26sig=hunter2",
        "az://registry?endpoint_url=ftp://host/account?sig=hunter2",
        "az://registry?account=storage1&sv=2022-11-02&sig=hunter2",
        "abfs://registry:hunter2@storage1.dfs.core.windows.net/prefix",
        "gs://hunter2@registry",
        "gs://registry?token=hunter2",
        "gs://registry?secret=hunter2",
    ],
)
def test_secrets_do_not_belong_into_a_url(url: str) -> None:
    """It is said where they belong, and they are not repeated."""
    with pytest.raises(UnknownSource) as caught:
        open_driver(url)
    assert "hunter2" not in str(caught.value)


def test_secrets_in_options_are_not_shown() -> None:
    """Not even by a traceback or a debugger."""
    options = AzureOptions("registry", account_key="hunter2", sas_token="hunter2", connection_string="hunter2")  # noqa: S106
    assert "hunter2" not in repr(options)


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("az://registry", "azure", "azure"),
        ("abfss://registry@account.dfs.core.windows.net", "azure", "azure"),
        ("gs://registry", "google", "gcs"),
        ("gs://registry", "google_crc32c", "gcs"),
        ("gcs://registry", "aiohttp", "gcs"),
    ],
)
def test_an_extra_that_is_not_installed(url: str, module: str, extra: str) -> None:
    """One line names what to install."""
    program = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from layerfs.driver.sources import open_driver\n"
        f"open_driver({url!r})"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert f"pip install 'layerfs[{extra}]'" in result.stderr.splitlines()[-1]


def test_nothing_is_imported_for_storage_on_disk() -> None:
    """The libraries of the clouds take a second; who mounts a directory does not wait for them."""
    program = (
        "import sys; from layerfs.driver.sources import open_driver; open_driver('/tmp'); "
        "print([name for name in ('aiohttp', 'azure', 'google', 'botocore', 'fsspec') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"


async def test_azure_without_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for, with the ways to say it."""
    for name in ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    driver = open_driver("az://registry")
    with pytest.raises(UnknownSource, match=r"of which account\? Say .*account=NAME.* AZURE_STORAGE_ACCOUNT"):
        await driver.stat("/")
    await driver.close()


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("abfs://registry@storage1.dfs.core.windows.net/p", "abfs://registry@storage1.dfs.core.windows.net/p"),
        (
            "abfss://registry@storage1.dfs.core.windows.net?block_size=8MiB",
            "abfss://registry@storage1.dfs.core.windows.net",
        ),
        ("abfs://registry:hunter2@storage1.dfs.core.windows.net/p", "abfs://storage1.dfs.core.windows.net/p"),
        ("az://hunter2@registry/p?account=a", "az://registry/p"),
        ("gs://registry/p?endpoint_url=http://host", "gs://registry/p"),
    ],
)
def test_what_everybody_may_see_of_a_source(source: str, shown: str) -> None:
    """In the mount table and in the log; a container before the @ is no secret."""
    assert display_name(source) == shown
