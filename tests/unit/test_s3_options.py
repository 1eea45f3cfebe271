"""What a URL says of a storage on S3, what it may not say, and what the driver makes of the SDK's own settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from layerfs.driver.s3 import S3Driver
from layerfs.driver.s3_options import S3Options, parse_s3_url
from layerfs.driver.sources import open_driver
from layerfs.errors import UnknownSource

MEBIBYTE = 1 << 20


def test_a_bucket() -> None:
    """Everything else is left to the SDK."""
    assert parse_s3_url("s3://bucket") == S3Options("bucket")
    assert parse_s3_url("s3://bucket/") == S3Options("bucket")


def test_a_prefix() -> None:
    """Without slashes at its ends, and unquoted."""
    assert parse_s3_url("s3://bucket/one/two%20three/").root_prefix == "one/two three"


def test_every_option() -> None:
    """Each as its type."""
    options = parse_s3_url(
        "s3://bucket/p?endpoint_url=https%3A//rgw.example%3A7480&region=eu-1&profile=work&path_style=false"
        "&verify_tls=no&ca_file=/ca.pem&multipart_copy_threshold=1GiB&part_size=8MiB&parts_in_flight=2&read_timeout=2.5"
    )
    assert options == S3Options(
        bucket="bucket",
        root_prefix="p",
        endpoint_url="https://rgw.example:7480",
        region="eu-1",
        profile="work",
        path_style=False,
        verify_tls=False,
        ca_file="/ca.pem",
        multipart_copy_threshold=1024 * MEBIBYTE,
        part_size=8 * MEBIBYTE,
        parts_in_flight=2,
        read_timeout=2.5,
    )


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "expected s3://BUCKET"),
        ("s3:///prefix", "expected s3://BUCKET"),
        ("s3://b", "'b' cannot be the name of a bucket"),
        ("s3://bucket/pre#fix", "write # as %23"),
        ("s3://bucket?colour=blue", "unknown option 'colour'; there are endpoint_url, region"),
        ("s3://bucket?endpoint_url=rgw.example", "expected http://HOST"),
        ("s3://bucket?endpoint_url=https://user:pass@rgw", "no credentials belong in it"),
        ("s3://bucket?path_style=maybe", "expected true or false"),
        ("s3://bucket?region=", "must not be empty"),
        ("s3://bucket?part_size=1MiB", "part_size must be from 5242880"),
        ("s3://bucket?part_size=many", "expected bytes"),
        ("s3://bucket?multipart_copy_threshold=6GiB", "multipart_copy_threshold must be"),
        ("s3://bucket?parts_in_flight=0", "parts_in_flight must be at least 1"),
        ("s3://bucket?parts_in_flight=x", "parts_in_flight='x'"),
        ("s3://bucket?read_timeout=0", "read_timeout must be more than 0"),
    ],
)
def test_what_makes_no_sense(url: str, words: str) -> None:
    """One line says what, with the value."""
    with pytest.raises(UnknownSource, match=words) as caught:
        parse_s3_url(url)
    assert "\n" not in str(caught.value)
    assert "pass" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:hidden@bucket/prefix",
        "s3://bucket?access_key_id=hidden",
        "s3://bucket?secret=hidden",
        "s3://bucket?session_TOKEN=hidden",
        "s3://bucket?password=hidden",
    ],
)
def test_credentials_in_a_url_are_refused(url: str) -> None:
    """They would be seen in `ps`; the answer says where they belong, and does not repeat them."""
    with pytest.raises(UnknownSource, match="AWS_ACCESS_KEY_ID") as caught:
        open_driver(url)
    assert "hidden" not in str(caught.value)


def test_options_do_not_show_secrets() -> None:
    """Not even to those who print them."""
    secrets = dict.fromkeys(("access_key_id", "secret_access_key", "session_token"), "hidden")
    assert "hidden" not in repr(S3Options("bucket", **secrets))


async def test_the_driver_of_a_url() -> None:
    """It asks nothing of anybody before its first call."""
    driver = open_driver("S3://bucket/prefix")
    assert isinstance(driver, S3Driver)
    assert not driver.capabilities.random_writes
    await driver.close()


def test_without_the_extra(tmp_path: Path) -> None:
    """The error is one line, and says how to install it."""
    (tmp_path / "aiobotocore.py").write_text("raise ModuleNotFoundError('no', name='aiobotocore')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from layerfs.driver.sources import open_driver\n"
        "try: open_driver('s3://bucket')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True).stdout
    assert said == (
        "UnknownSource cannot open storage: 's3://': aiobotocore is not installed; run pip install 'layerfs[s3]'\n"
    )
