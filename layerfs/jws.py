"""Signed JSON as `github.com/docker/libtrust` writes it, which is how schema 1 manifests are signed. No I/O.

The signatures stand in a field of the very document that they sign. What they sign is that document as it was before
the field was put in: its first `formatLength` bytes, then `formatTail`, both of which the protected header of every
signature says. So nothing needs to be formatted again to verify it.

Reading needs only the standard library; verifying needs `cryptography` (the extra `layerfs[schema1]`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from layerfs.errors import InvalidManifest, ManifestUnverified, SignatureUnsupported
from layerfs.strictjson import JsonObject, parse_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

#: The field that signatures stand in.
SIGNATURES: Final = "signatures"

#: Signatures of one document. Each costs up to a millisecond; nobody has seen more than a few.
_SIGNATURES_LIMIT: Final = 32

#: Bits of an RSA key. Verifying with longer ones takes seconds.
_RSA_BITS_LIMIT: Final = 16384

_BLOCK_FIELDS: Final = ("header", "signature", "protected")
_HEADER_FIELDS: Final = ("jwk", "alg", "x5c")
_KEY_FIELDS: Final = ("kty", "kid", "crv", "x", "y", "n", "e")


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature: by whom (a key, or a certificate of it) and of which payload, if it is genuine."""

    algorithm: str
    key: JsonObject
    certificates: tuple[str, ...]
    protected: str
    value: str


@dataclass(frozen=True, slots=True)
class SignedJson:
    """A payload and what claims to be its signatures."""

    payload: bytes
    signatures: tuple[Signature, ...]

    @classmethod
    def split(cls, content: bytes, blocks: object) -> SignedJson:
        """Takes signed `content` apart; `blocks` is what was found in its field `signatures`.

        Raises `InvalidManifest`. What it returns is not verified yet.
        """
        if not isinstance(blocks, list) or not blocks:
            raise InvalidManifest("the signatures must be a list of at least one")
        if len(blocks) > _SIGNATURES_LIMIT:
            raise InvalidManifest(f"more than {_SIGNATURES_LIMIT} signatures")
        signatures = tuple(_signature(block) for block in blocks)
        formats = {_format(signature.protected) for signature in signatures}
        if len(formats) > 1:
            raise InvalidManifest("the signatures are not of the same payload")
        ((length, tail),) = formats
        if not 0 < length <= len(content):
            raise InvalidManifest(f"signatures of the first {length} of {len(content)} bytes")
        return cls(content[:length] + tail, signatures)

    def verify(self) -> None:
        """Returns if every signature is of the payload, by the key that it brings; whose key that is, is not asked.

        Raises `ManifestUnverified`, or `SignatureUnsupported` if `cryptography` is not installed.
        """
        payload = base64.urlsafe_b64encode(self.payload).rstrip(b"=")
        for signature in self.signatures:
            _verify(signature, signature.protected.encode() + b"." + payload)


def attach(payload: bytes, signatures: list[bytes]) -> bytes:
    """The signed document, byte for byte as libtrust puts it together from a payload and separate signatures.

    Raises `InvalidManifest`.
    """
    blocks = [(_signature(block := parse_json(signature)), block) for signature in signatures]
    blocks.sort(key=lambda pair: (pair[0].key.string("kid"), pair[0].value))
    head = payload.rstrip()
    if not blocks or not head.endswith(b"}"):
        raise InvalidManifest("a payload that is no object, or no signatures")
    head = head[:-1].rstrip()
    indent = _indent_of(payload)
    if not indent:
        listed = json.dumps([block for _, block in blocks], separators=(",", ":"))
        return head + f',"{SIGNATURES}":{listed}}}'.encode()
    # Go indents every line but the first once more than Python does.
    listed = json.dumps([block for _, block in blocks], indent=indent).replace("\n", f"\n{indent}")
    return head + f',\n{indent}"{SIGNATURES}": {listed}\n}}'.encode()


def _indent_of(payload: bytes) -> str:
    """What stands before the first field, if it has a line of its own."""
    if not payload.startswith(b"{\n"):
        return ""
    indent, quote, _ = payload[2:].partition(b'"')
    return indent.decode() if quote and not indent.strip(b" \t") else ""


def _signature(block: object) -> Signature:
    fields = JsonObject(block, "a signature", _BLOCK_FIELDS)
    header = JsonObject(fields.value("header"), "the header of a signature", _HEADER_FIELDS)
    return Signature(
        header.string("alg"),
        JsonObject(header.value("jwk"), "the key of a signature", _KEY_FIELDS),
        header.strings("x5c"),
        fields.string("protected"),
        fields.string("signature"),
    )


def _format(protected: str) -> tuple[int, bytes]:
    header = JsonObject(parse_json(_decode(protected)), "a protected header", ("formatLength", "formatTail"))
    return header.integer("formatLength"), _decode(header.string("formatTail"))


def _decode(text: str) -> bytes:
    """Of base64 for URLs, without padding. Raises `InvalidManifest`."""
    try:
        return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise InvalidManifest("a signature has something that is no base64") from None


def _verify(signature: Signature, message: bytes) -> None:
    try:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    except ImportError:
        raise SignatureUnsupported(
            "schema 1 manifests cannot be stored here, because their signatures cannot be verified without "
            "'cryptography': install layerfs[schema1]"
        ) from None
    try:
        key = _key_of_certificate(signature) if signature.certificates else _key_of(signature.key)
        if isinstance(key, RSAPublicKey):
            _verify_rsa(key, signature, message)
        else:
            _verify_ec(key, signature, message)
    except InvalidSignature:
        raise ManifestUnverified("a signature is not of this content by this key") from None
    except (InvalidManifest, ValueError, UnsupportedAlgorithm) as error:
        raise ManifestUnverified(f"a signature cannot be verified: {error}") from None


def _verify_rsa(key: RSAPublicKey, signature: Signature, message: bytes) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    kinds = {"RS256": hashes.SHA256(), "RS384": hashes.SHA384(), "RS512": hashes.SHA512()}
    if signature.algorithm not in kinds:
        raise ValueError(f"algorithm {signature.algorithm[:20]!r} is none of an RSA key")
    key.verify(_decode(signature.value), message, padding.PKCS1v15(), kinds[signature.algorithm])


def _verify_ec(key: EllipticCurvePublicKey, signature: Signature, message: bytes) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    # RFC 7518, 3.4: each curve has its own hash, and a signature is the two numbers, at full length.
    kinds = {"secp256r1": ("ES256", hashes.SHA256), "secp384r1": ("ES384", hashes.SHA384)}
    name, kind = kinds.get(key.curve.name, ("ES512", hashes.SHA512))
    if signature.algorithm != name:
        raise ValueError(f"algorithm {signature.algorithm[:20]!r} is not that of the key, {name}")
    numbers = _decode(signature.value)
    length = (key.key_size + 7) // 8
    if len(numbers) != 2 * length:
        raise ValueError(f"a signature of {len(numbers)} bytes")
    r, s = int.from_bytes(numbers[:length], "big"), int.from_bytes(numbers[length:], "big")
    key.verify(utils.encode_dss_signature(r, s), message, ec.ECDSA(kind()))


def _key_of(fields: JsonObject) -> RSAPublicKey | EllipticCurvePublicKey:
    """The key in a JSON Web Key (RFC 7517), whose `kid` must be its own, as libtrust requires."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    curves = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
    key: RSAPublicKey | EllipticCurvePublicKey
    if fields.string("kty") == "EC" and (curve := curves.get(fields.string("crv"))):
        key = ec.EllipticCurvePublicNumbers(_number(fields, "x"), _number(fields, "y"), curve).public_key()
    elif fields.string("kty") == "RSA":
        key = rsa.RSAPublicNumbers(_number(fields, "e"), _number(fields, "n")).public_key()
    else:
        raise ValueError("no key of a kind that is known")
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if fields.string("kid") not in ("", key_id(der)):
        raise ValueError("the id of the key is not its own")
    return key


def _key_of_certificate(signature: Signature) -> RSAPublicKey | EllipticCurvePublicKey:
    """The key in the first certificate of the chain; who vouches for it is not asked."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    key = x509.load_der_x509_certificate(base64.b64decode(signature.certificates[0], validate=True)).public_key()
    if isinstance(key, RSAPublicKey) and key.key_size <= _RSA_BITS_LIMIT:
        return key
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in ("secp256r1", "secp384r1", "secp521r1"):
        return key
    raise ValueError("no key of a kind that is known")


def _number(fields: JsonObject, name: str) -> int:
    digits = _decode(fields.string(name))
    if not 0 < len(digits) * 8 <= _RSA_BITS_LIMIT:
        raise ValueError(f"{name!r} of the key has {len(digits)} bytes")
    return int.from_bytes(digits, "big")


def key_id(der: bytes) -> str:
    """libtrust's id of a public key: 240 bits of the SHA-256 of its DER form, base 32, in groups of four."""
    text = base64.b32encode(hashlib.sha256(der).digest()[:30]).decode()
    return ":".join(text[start : start + 4] for start in range(0, len(text), 4))
