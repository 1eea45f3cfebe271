"""Manifests of every kind, put together by hand, and signed as libtrust signs. Knows the formats, not layerfs."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

OCI_IMAGE = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
DOCKER_IMAGE = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"


def digest(content: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def describe(content: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    """A descriptor of `content`."""
    return {"mediaType": media_type, "digest": digest(content), "size": len(content)} | more


def oci_image(config: bytes = b"{}", layers: Sequence[bytes] = (), **more: Any) -> dict[str, Any]:
    """An OCI image; `more` are other fields, or other values for these."""
    return {
        "schemaVersion": 2,
        "mediaType": OCI_IMAGE,
        "config": describe(config, OCI_CONFIG),
        "layers": [describe(layer, OCI_LAYER) for layer in layers],
    } | more


def docker_image(config: bytes = b"{}", layers: Sequence[bytes] = (), **more: Any) -> dict[str, Any]:
    """A Docker image of schema 2."""
    return {
        "schemaVersion": 2,
        "mediaType": DOCKER_IMAGE,
        "config": describe(config, DOCKER_CONFIG),
        "layers": [describe(layer, DOCKER_LAYER) for layer in layers],
    } | more


def oci_index(children: Sequence[bytes] = (), **more: Any) -> dict[str, Any]:
    """An OCI index of manifests."""
    return {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [
            describe(child, OCI_IMAGE, platform={"architecture": "amd64", "os": "linux"}) for child in children
        ],
    } | more


def docker_list(children: Sequence[bytes] = (), **more: Any) -> dict[str, Any]:
    """A Docker manifest list."""
    return {
        "schemaVersion": 2,
        "mediaType": DOCKER_LIST,
        "manifests": [
            describe(child, DOCKER_IMAGE, platform={"architecture": "amd64", "os": "linux"}) for child in children
        ],
    } | more


def schema1(layers: Sequence[bytes] = (), **more: Any) -> dict[str, Any]:
    """A manifest of schema 1, without signatures; the newest layer is the first in it."""
    return {
        "schemaVersion": 1,
        "name": "foo/bar",
        "tag": "v1",
        "architecture": "amd64",
        "fsLayers": [{"blobSum": digest(layer)} for layer in layers],
        "history": [{"v1Compatibility": json.dumps({"id": digest(layer)[7:]})} for layer in layers],
    } | more


def encode(document: dict[str, Any]) -> bytes:
    """As clients write it: indented by three."""
    return json.dumps(document, indent=3).encode()


# --- signatures ----------------------------------------------------------------------------------------------------

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_CURVES = {"secp256r1": ("P-256", "ES256"), "secp384r1": ("P-384", "ES384"), "secp521r1": ("P-521", "ES512")}


def ec_key(curve: type[ec.EllipticCurve] = ec.SECP256R1) -> PrivateKey:
    return ec.generate_private_key(curve())


def rsa_key() -> PrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def encode_base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def jwk(key: PrivateKey) -> dict[str, str]:
    """The public half as a JSON Web Key, in libtrust's order of fields."""
    public = key.public_key()
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    text = base64.b32encode(hashlib.sha256(der).digest()[:30]).decode()
    kid = ":".join(text[start : start + 4] for start in range(0, 48, 4))
    numbers = public.public_numbers()
    if isinstance(numbers, rsa.RSAPublicNumbers):
        e = numbers.e.to_bytes((numbers.e.bit_length() + 7) // 8, "big")
        n = numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8, "big")
        return {"e": encode_base64(e), "kid": kid, "kty": "RSA", "n": encode_base64(n)}
    length = (public.key_size + 7) // 8
    x, y = (encode_base64(number.to_bytes(length, "big")) for number in (numbers.x, numbers.y))
    return {"crv": _CURVES[public.curve.name][0], "kid": kid, "kty": "EC", "x": x, "y": y}


def certificate(key: PrivateKey) -> str:
    """A certificate for the key, by itself, in base64."""
    import datetime

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "layerfs tests")])
    now = datetime.datetime(2015, 4, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=3650))
    made = builder.sign(key, hashes.SHA256())
    return base64.b64encode(made.public_bytes(serialization.Encoding.DER)).decode()


def signature(payload: bytes, key: PrivateKey, *, chain: bool = False) -> dict[str, Any]:
    """One signature of `payload`, as libtrust writes it."""
    head = payload.rstrip()[:-1].rstrip()
    protected = {"formatLength": len(head), "formatTail": encode_base64(payload[len(head) :])}
    text = encode_base64(json.dumps(protected | {"time": "2015-04-01T12:00:00Z"}, separators=(",", ":")).encode())
    message = f"{text}.{encode_base64(payload)}".encode()
    if isinstance(key, rsa.RSAPrivateKey):
        algorithm, value = "RS256", key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    else:
        algorithm = _CURVES[key.curve.name][1]
        kind = {"ES256": hashes.SHA256, "ES384": hashes.SHA384, "ES512": hashes.SHA512}[algorithm]
        length = (key.key_size + 7) // 8
        numbers = utils.decode_dss_signature(key.sign(message, ec.ECDSA(kind())))
        value = b"".join(number.to_bytes(length, "big") for number in numbers)
    who = {"x5c": [certificate(key)]} if chain else {"jwk": jwk(key)}
    header = {"alg": algorithm} | who if chain else who | {"alg": algorithm}
    return {"header": header, "signature": encode_base64(value), "protected": text}


def attach(payload: bytes, signatures: Sequence[dict[str, Any]]) -> bytes:
    """The document with its signatures in it, indented by three as libtrust does."""
    head = payload.rstrip()[:-1].rstrip()
    text = json.dumps({"signatures": list(signatures)}, indent=3)
    return head + b",\n" + text.removeprefix("{\n").encode()


def sign(document: dict[str, Any], *keys: PrivateKey, chain: bool = False) -> bytes:
    """A signed manifest of schema 1."""
    payload = encode(document)
    return attach(payload, [signature(payload, key, chain=chain) for key in keys])
