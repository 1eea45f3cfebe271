"""How long requests to object stores are made again: what a failure tells of it, and when the tries end."""

from __future__ import annotations

import ssl
import time
from email.utils import formatdate

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
from botocore import exceptions as botocore
from google.auth.exceptions import RefreshError

from layerfs.driver import azure_errors, gcs_errors, s3_errors
from layerfs.driver.patience import Failing, Patience, Tries, seconds_asked_for

REFUSED = ConnectionRefusedError(111, "Connection refused")
URL = "https://store.example"
KEY = ConnectionKey("store.example", 443, True, True, None, None, None)
NOT_TRUSTED = aiohttp.ClientConnectorCertificateError(KEY, ssl.SSLCertVerificationError())


def without_tls() -> aiohttp.ClientError:
    """What aiohttp makes of a server that speaks plain HTTP where TLS was expected."""
    server = ssl.MemoryBIO()
    server.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
    try:
        ssl.create_default_context().wrap_bio(server, ssl.MemoryBIO(), server_hostname="store.example").do_handshake()
    except ssl.SSLError as error:
        wrapped = aiohttp.ClientConnectorSSLError(KEY, error)
        wrapped.__cause__ = error
        return wrapped
    raise AssertionError


NO_TLS = without_tls()


def s3_answer(status: int, code: str) -> dict[str, object]:
    return {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (503, "SlowDown", Failing.FOR_NOW),
        (429, "TooManyRequests", Failing.FOR_NOW),
        (400, "ThrottlingException", Failing.FOR_NOW),
        (502, "502", Failing.FOR_NOW),
        (504, "GatewayTimeout", Failing.FOR_NOW),
        (500, "InternalError", Failing.PERHAPS),
        (400, "RequestTimeout", Failing.PERHAPS),
        (400, "ExpiredToken", Failing.FOR_GOOD),
        (403, "RequestTimeTooSkewed", Failing.FOR_GOOD),
        (403, "SignatureDoesNotMatch", Failing.FOR_GOOD),
        (404, "NoSuchKey", Failing.FOR_GOOD),
        (412, "PreconditionFailed", Failing.FOR_GOOD),
        (507, "XMinioStorageFull", Failing.FOR_GOOD),
        (200, "", None),
    ],
)
def test_answers_of_s3(status: int, code: str, expected: Failing | None) -> None:
    """By the code where it says more than the status."""
    assert s3_errors.failing(s3_answer(status, code), None) is expected


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (429, b"", Failing.FOR_NOW),
        (403, b'{"error": {"errors": [{"reason": "rateLimitExceeded"}]}}', Failing.FOR_NOW),
        (403, b'{"error": {"errors": [{"reason": "forbidden"}]}}', Failing.FOR_GOOD),
        (500, b"", Failing.PERHAPS),
        (503, b"", Failing.FOR_NOW),
        (401, b"", Failing.FOR_GOOD),
    ],
)
def test_answers_of_google(status: int, body: bytes, expected: Failing) -> None:
    """By the reason where it says more than the status."""
    assert gcs_errors.failing(gcs_errors.ResponseError(status, body)) is expected


@pytest.mark.parametrize(
    ("status", "expected"), [(503, Failing.FOR_NOW), (500, Failing.PERHAPS), (409, Failing.PERHAPS)]
)
def test_answers_of_azure(status: int, expected: Failing) -> None:
    """Of those that its SDK would repeat: a copy whose source is busy is a 409."""
    assert azure_errors.failing(status) is expected


def test_nobody_listens() -> None:
    """However the libraries wrap it."""
    assert s3_errors.failing(None, botocore.EndpointConnectionError(endpoint_url=URL, error=REFUSED)) is Failing.FOR_NOW
    assert azure_errors.failing(ServiceRequestError("", error=REFUSED)) is Failing.FOR_NOW
    assert gcs_errors.failing(REFUSED) is Failing.FOR_NOW


def test_who_is_not_trusted_will_not_be() -> None:
    """However the libraries wrap it."""
    assert s3_errors.failing(None, botocore.SSLError(endpoint_url=URL, error=NOT_TRUSTED)) is Failing.FOR_GOOD
    assert azure_errors.failing(ServiceRequestError("", error=NOT_TRUSTED)) is Failing.FOR_GOOD
    assert gcs_errors.failing(NOT_TRUSTED) is Failing.FOR_GOOD


def test_no_tls_is_nobody_there() -> None:
    """A proxy says in its own way that what is behind it is away. However the libraries wrap it; and it is told so."""
    assert s3_errors.failing(None, botocore.SSLError(endpoint_url=URL, error=NO_TLS)) is Failing.FOR_NOW
    assert azure_errors.failing(ServiceRequestError("", error=NO_TLS)) is Failing.FOR_NOW
    assert gcs_errors.failing(NO_TLS) is Failing.FOR_NOW
    told = [
        s3_errors.s3_error(botocore.SSLError(endpoint_url=URL, error=NO_TLS), "/a", store=URL),
        azure_errors.azure_error(ServiceRequestError("", error=NO_TLS), "/a", store=URL),
        gcs_errors.gcs_error(NO_TLS, "/a", store=URL),
    ]
    assert {str(error).partition(": ")[2] for error in told} == {
        f"'/a': {URL} cannot be reached, or broke the connection (TLS: WRONG_VERSION_NUMBER)"
    }


def test_no_credentials() -> None:
    """Whoever gives them was asked by the libraries more than once."""
    assert s3_errors.failing(None, botocore.NoCredentialsError()) is Failing.FOR_GOOD
    assert azure_errors.failing(ClientAuthenticationError("")) is Failing.FOR_GOOD
    assert gcs_errors.failing(RefreshError("")) is Failing.FOR_GOOD  # type: ignore[no-untyped-call]


# --- tries -----------------------------------------------------------------------------------------------------------


def known(read_timeout: float) -> Patience:
    """With a store that has answered before."""
    patience = Patience(read_timeout)
    patience.answered()
    return patience


def pauses(tries: Tries, *failures: Failing) -> list[float | None]:
    return [tries.pause(failing) for failing in failures]


def test_few_tries() -> None:
    """Of what may fail each time, and of a store that was never there; none of what is wrong."""
    perhaps, never_there = [Failing.PERHAPS] * 3, [Failing.FOR_NOW] * 3
    *paused, ended = pauses(Tries(known(15), 45), *perhaps)
    assert all(paused)
    assert ended is None
    *paused, ended = pauses(Tries(Patience(15), 45), *never_there)
    assert all(paused)
    assert ended is None
    assert pauses(Tries(known(15), 45), Failing.FOR_GOOD) == [None]


def test_what_stumbles_when_it_comes_back() -> None:
    """The tries while nobody was there do not count."""
    tries = Tries(known(15), 45)
    assert all(pauses(tries, *[Failing.FOR_NOW] * 10, Failing.PERHAPS, Failing.PERHAPS))
    assert tries.pause(Failing.PERHAPS) is None


def test_pauses_grow_and_differ() -> None:
    """Up to 1 s, 2 s and then 4 s, and no two are alike, so that not all come back at once."""
    found = [pauses(Tries(known(15), 45), *[Failing.FOR_NOW] * 5) for _ in range(50)]
    for each, longest in zip(zip(*found, strict=True), [1, 2, 4, 4, 4], strict=True):
        assert all(longest / 4 <= pause <= longest for pause in each if pause is not None)
        assert len(set(each)) == 50


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_how_long_a_store_asks_to_wait(form: str) -> None:
    """In both forms that HTTP has."""
    said = "120" if form == "seconds" else formatdate(time.time() + 120, usegmt=True)
    assert 60 < seconds_asked_for({"retry-after": said}) <= 120


@pytest.mark.parametrize("said", ["", "soon", "-5", "1.5", "١٢", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_what_asks_for_nothing(said: str) -> None:
    """Neither nonsense nor what is past already."""
    assert seconds_asked_for({"retry-after": said}) == 0
    assert seconds_asked_for({}) == 0


def test_a_store_gets_the_time_it_asks_for() -> None:
    """At least, and not all come back at once then; but the last try is made while there is time for it."""
    found = [Tries(known(15), 45).pause(Failing.FOR_NOW, at_least=5) for _ in range(50)]
    assert all(5 <= pause <= 6 for pause in found if pause is not None)
    assert len(set(found)) == 50
    asked_for_too_much = Tries(known(15), 45).pause(Failing.FOR_NOW, at_least=3600)
    assert asked_for_too_much is not None
    assert 37 < asked_for_too_much <= 37.5


@pytest.mark.parametrize("seconds", [0.3, 100])
def test_tries_end_in_time(seconds: float) -> None:
    """The last one is made when five sixths of the time are over; what is sent makes that longer for no failure."""
    tries = Tries(known(0.1), seconds)
    began_at = time.monotonic()
    while (pause := tries.pause(Failing.FOR_NOW)) is not None:
        time.sleep(pause)  # what it says
    assert 0.25 <= time.monotonic() - began_at < 5
