"""Signed manifests of schema 1: what is signed, by whom, and whether it is true."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from harness import images
from harness.images import attach, ec_key, encode, encode_base64, rsa_key, schema1, sign, signature

from layerfs import jws
from layerfs.digest import Digest
from layerfs.errors import InvalidManifest, ManifestUnverified, SignatureUnsupported
from layerfs.manifest import Manifest, parse_manifest

DOCUMENT = schema1([b"first layer", b"second layer"])
PAYLOAD = encode(DOCUMENT)
KEY = ec_key()

KEYS = {
    "P-256": KEY,
    "P-384": ec_key(ec.SECP384R1),
    "P-521": ec_key(ec.SECP521R1),
    "RSA": rsa_key(),
}


@pytest.mark.parametrize("chain", [False, True], ids=["key", "certificate"])
@pytest.mark.parametrize("kind", KEYS)
def test_a_genuine_signature(kind: str, chain: bool) -> None:
    """By every kind of key that libtrust has, brought along as such or in a certificate."""
    parse_manifest(sign(DOCUMENT, KEYS[kind], chain=chain)).verify_signatures()


def test_several_signatures() -> None:
    """Every one counts."""
    parse_manifest(sign(DOCUMENT, *KEYS.values())).verify_signatures()
    good, bad = (signature(PAYLOAD, key) for key in list(KEYS.values())[:2])
    bad["signature"] = good["signature"]
    for order in ([good, bad], [bad, good]):
        with pytest.raises(ManifestUnverified):
            parse_manifest(attach(PAYLOAD, order)).verify_signatures()


def test_what_is_signed() -> None:
    """The manifest is the payload, byte for byte, without the signatures; its digest is the payload's."""
    manifest = parse_manifest(sign(DOCUMENT, KEY)).manifest
    assert manifest == Manifest(Digest.of(PAYLOAD), images.SCHEMA1_SIGNED, PAYLOAD)


def test_what_is_not_signed_does_not_count() -> None:
    """Fields behind the signed bytes are no part of the manifest."""
    content = sign(DOCUMENT, KEY)
    content = content.rstrip().removesuffix(b"}") + b',"more": 1}'
    parsed = parse_manifest(content)
    parsed.verify_signatures()
    assert parsed.manifest.content == PAYLOAD


@pytest.mark.parametrize("layout", [{"indent": 3}, {"indent": 1}, {"indent": "\t"}, {}, {"separators": (",", ":")}])
@pytest.mark.parametrize("tail", [b"", b"\n", b" \n\n"])
def test_any_layout(layout: dict[str, Any], tail: bytes) -> None:
    """However the payload was written, it comes out as it was."""
    payload = json.dumps(DOCUMENT, **layout).encode() + tail
    parsed = parse_manifest(attach(payload, [signature(payload, KEY)]))
    parsed.verify_signatures()
    assert parsed.manifest.content == payload


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    block = signature(PAYLOAD, KEY)
    change(block)
    return attach(PAYLOAD, [block])


def protect(**fields: Any) -> str:
    return encode_base64(json.dumps(fields).encode())


UNVERIFIED: dict[str, bytes] = {
    "payload changed": sign(DOCUMENT, KEY).replace(b'"v1"', b'"v2"', 1),
    "payload of another": changed(lambda block: block.update(signature=signature(PAYLOAD + b" ", KEY)["signature"])),
    "key of another": changed(lambda block: block["header"].update(jwk=images.jwk(ec_key()))),
    "key of another under its id": changed(
        lambda block: block["header"]["jwk"].update(images.jwk(ec_key()) | {"kid": images.jwk(KEY)["kid"]})
    ),
    "id of another key": changed(lambda block: block["header"]["jwk"].update(kid=images.jwk(ec_key())["kid"])),
    "time changed": changed(
        lambda block: block.update(
            protected=protect(
                formatLength=len(PAYLOAD) - 2, formatTail=encode_base64(PAYLOAD[-2:]), time="2016-01-01T00:00:00Z"
            )
        )
    ),
    "no key": changed(lambda block: block["header"].pop("jwk")),
    "no algorithm": changed(lambda block: block["header"].pop("alg")),
    "algorithm none": changed(lambda block: block["header"].update(alg="none")),
    "algorithm HS256": changed(lambda block: block["header"].update(alg="HS256")),
    "algorithm of another curve": changed(lambda block: block["header"].update(alg="ES384")),
    "unknown kind of key": changed(lambda block: block["header"]["jwk"].update(kty="oct")),
    "unknown curve": changed(lambda block: block["header"]["jwk"].update(crv="P-224")),
    "point off the curve": changed(lambda block: block["header"]["jwk"].update(x=encode_base64(b"\1" * 32))),
    "key without numbers": changed(lambda block: block["header"]["jwk"].update(x="")),
    "huge key": changed(lambda block: block["header"].update(jwk={"kty": "RSA", "n": "A" * 100_000, "e": "AQAB"})),
    "weak key": changed(lambda block: block["header"].update(jwk={"kty": "RSA", "n": "Aw", "e": "Aw"}, alg="RS256")),
    "no signature": changed(lambda block: block.pop("signature")),
    "short signature": changed(lambda block: block.update(signature=block["signature"][:-4])),
    "zeros": changed(lambda block: block.update(signature=encode_base64(bytes(64)))),
    "signature no base64": changed(lambda block: block.update(signature="*")),
    "certificate that is none": changed(lambda block: block["header"].update(x5c=["e30="])),
    "certificate no base64": changed(lambda block: block["header"].update(x5c=["*"])),
    "certificate of another": changed(lambda block: block["header"].update(x5c=[images.certificate(ec_key())])),
    "none": PAYLOAD,
}


@pytest.mark.parametrize("content", UNVERIFIED.values(), ids=UNVERIFIED)
def test_what_is_not_genuine(content: bytes) -> None:
    """Raises `ManifestUnverified`; the manifest can be read all the same."""
    parsed = parse_manifest(content)
    with pytest.raises(ManifestUnverified) as caught:
        parsed.verify_signatures()
    assert str(caught.value).isprintable()


MALFORMED: dict[str, bytes] = {
    "no protected header": changed(lambda block: block.pop("protected")),
    "protected header no base64": changed(lambda block: block.update(protected="*")),
    "protected header no JSON": changed(lambda block: block.update(protected=encode_base64(b"{no"))),
    "no length": changed(lambda block: block.update(protected=protect(formatTail="Cn0"))),
    "length 0": changed(lambda block: block.update(protected=protect(formatLength=0, formatTail="e30"))),
    "negative length": changed(lambda block: block.update(protected=protect(formatLength=-1, formatTail="e30"))),
    "length beyond the end": changed(lambda block: block.update(protected=protect(formatLength=1 << 40))),
    "length a string": changed(lambda block: block.update(protected=protect(formatLength="1"))),
    "tail no base64": changed(lambda block: block.update(protected=protect(formatLength=1, formatTail="*"))),
    "payload no JSON": changed(lambda block: block.update(protected=protect(formatLength=5, formatTail=""))),
    "payload of another schema": changed(
        lambda block: block.update(protected=protect(formatLength=1, formatTail=encode_base64(b'"schemaVersion": 2}')))
    ),
    "payload with signatures": attach(sign(DOCUMENT, KEY), [signature(sign(DOCUMENT, KEY), KEY)]).replace(
        b'"signatures"', b'"x"', 1
    ),
    "different payloads": attach(PAYLOAD, [signature(PAYLOAD, KEY), signature(PAYLOAD + b"\n", KEY)]),
    "header a string": changed(lambda block: block.update(header="x")),
    "x5c a string": changed(lambda block: block["header"].update(x5c="x")),
    "key a list": changed(lambda block: block["header"].update(jwk=[])),
    "too many": attach(PAYLOAD, [signature(PAYLOAD, KEY)] * 33),
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_what_cannot_be_taken_apart(content: bytes) -> None:
    """Is no manifest."""
    with pytest.raises(InvalidManifest):
        parse_manifest(content)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signed manifest can be read; verifying it says what is missing. Other kinds are not affected."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    parsed = parse_manifest(sign_beforehand)
    assert parsed.manifest.content == PAYLOAD
    with pytest.raises(SignatureUnsupported, match=r"layerfs\[schema1\]"):
        parsed.verify_signatures()
    parse_manifest(encode(images.oci_image())).verify_signatures()


sign_beforehand = sign(DOCUMENT, KEY)


@pytest.mark.parametrize("payload", [PAYLOAD, PAYLOAD + b"\n", json.dumps(DOCUMENT).encode()])
def test_putting_signatures_back(payload: bytes) -> None:
    """Signatures that were stored by themselves make a genuine document again, in libtrust's order."""
    blocks = sorted((signature(payload, key) for key in KEYS.values()), key=lambda block: block["header"]["jwk"]["kid"])
    whole = jws.attach(payload, [json.dumps(block).encode() for block in reversed(blocks)])
    assert json.loads(whole)["signatures"] == blocks
    parsed = parse_manifest(whole)
    parsed.verify_signatures()
    assert parsed.manifest.content == payload


def test_the_layout_of_signatures_put_back() -> None:
    """Is that of the payload."""
    block = signature(PAYLOAD, KEY)
    assert jws.attach(PAYLOAD, [json.dumps(block).encode()]) == attach(PAYLOAD, [block])
    compact = json.dumps(DOCUMENT, separators=(",", ":")).encode()
    block = signature(compact, KEY)
    listed = json.dumps([block], separators=(",", ":"))
    assert jws.attach(compact, [json.dumps(block).encode()]) == compact[:-1] + f',"signatures":{listed}}}'.encode()


@pytest.mark.parametrize("payload", [b"", b"x", b"[]", PAYLOAD[:-1]])
def test_putting_signatures_to_what_has_no_place_for_them(payload: bytes) -> None:
    """Is refused, and so is a block that is none, or no block at all."""
    with pytest.raises(InvalidManifest):
        jws.attach(payload, [json.dumps(signature(PAYLOAD, KEY)).encode()])
    for blocks in ([], [b"{no"], [b"[]"], [b'{"header": 1}']):
        with pytest.raises(InvalidManifest):
            jws.attach(PAYLOAD, blocks)
