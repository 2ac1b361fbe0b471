"""What keeps a sum's secrets, all of it by well-kept libraries: signatures, key agreement, sealing, shares.

Keys come from the operating system.  Signatures are ECDSA over P-384, by the key that proves who a site is; keys are
agreed on by X25519 and derived by HKDF; what one site tells another through the server is sealed by AES-256-GCM; shares
are Shamir's, of a secret's two halves of 16 bytes.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from prismfl.errors import ClientError, SettingError

SECRET = 32  # bytes of a secret, a key, and a share
SEALED = 16  # bytes that sealing adds
SIGNATURE = 96  # bytes
_HALF = 16
_NUMBER = SIGNATURE // 2


# ------------------------------------------------------------------------------- who a site is


@dataclass(frozen=True)
class Identity:
    """A site's private key, and what it signs.

    Examples:
        >>> one = Identity.made()
        >>> one.public.split()[0], verify(one.public, one.sign(b"text"), b"text")
        ('ecdsa-sha2-nistp384', True)
        >>> verify(Identity.made().public, one.sign(b"text"), b"text")
        False
    """

    key: ec.EllipticCurvePrivateKey

    @classmethod
    def made(cls) -> "Identity":
        """A new one."""
        return cls(ec.generate_private_key(ec.SECP384R1()))

    @classmethod
    def read(cls, path: Path) -> "Identity":
        """From a file as `prismfl federate certificates` makes it.  Raises SettingError."""
        try:
            return cls.parsed(path.read_bytes())
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise SettingError(
                f"{path} ({error})",
                "a site's private key, of curve P-384 and without a password",
                "pass --key client-N.key, as `prismfl federate certificates` makes it",
            ) from None

    @classmethod
    def parsed(cls, raw: bytes) -> "Identity":
        """From the bytes of such a file.  Raises ValueError, TypeError, UnsupportedAlgorithm."""
        key = (_pem if b"BEGIN PRIVATE" in raw else serialization.load_ssh_private_key)(raw, None)
        if not (isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp384r1"):
            raise ValueError("another kind of key")
        return cls(key)

    @property
    def public(self) -> str:
        """The public half, as a policy pins it: kind and key of OpenSSH's one line."""
        kind = serialization.PublicFormat.OpenSSH
        return self.key.public_key().public_bytes(serialization.Encoding.OpenSSH, kind).decode()

    def private(self) -> bytes:
        """The key as OpenSSH's file has it."""
        form = serialization.PrivateFormat.OpenSSH
        return self.key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())

    def sign(self, text: bytes) -> bytes:
        """96 bytes: both numbers of the signature."""
        first, second = decode_dss_signature(self.key.sign(text, ec.ECDSA(hashes.SHA384())))
        return first.to_bytes(_NUMBER, "big") + second.to_bytes(_NUMBER, "big")


def _pem(raw: bytes, password: None) -> object:
    return serialization.load_pem_private_key(raw, password)


def public_key(line: str) -> str:
    """A public key without its comment.  Raises SettingError for what is none of curve P-384."""
    parts = " ".join(line.split()[:2])
    try:
        _loaded(parts)
    except (ValueError, UnsupportedAlgorithm, binascii.Error):
        raise SettingError(
            f"a public key {line[:40]!r}", "the line of a client-N.pub, of curve P-384", "mend `sites` in the policy"
        ) from None
    return parts


def _loaded(line: str) -> ec.EllipticCurvePublicKey:
    found = serialization.load_ssh_public_key(line.encode())
    if not (isinstance(found, ec.EllipticCurvePublicKey) and found.curve.name == "secp384r1"):
        raise ValueError("another kind of key")
    return found


def verify(public: str, signature: bytes, text: bytes) -> bool:
    """Whether a signature of 96 bytes is that of a public key over a text."""
    pair = (int.from_bytes(signature[:_NUMBER], "big"), int.from_bytes(signature[_NUMBER:], "big"))
    try:
        _loaded(public).verify(encode_dss_signature(*pair), text, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(public: str) -> str:
    """A public key's SHA-256 as OpenSSH shows it."""
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


# ------------------------------------------------------------------------------- keys and secrets


def fresh() -> bytes:
    """A secret of 32 bytes from the operating system: also a private key of X25519."""
    return os.urandom(SECRET)


def public_of(private: bytes) -> bytes:
    """The public half of an X25519 key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agreed(private: bytes, public: bytes, info: bytes) -> bytes:
    """The key of 32 bytes that two sites have in common, for one purpose.

    Raises ClientError for a public key with which nothing is secret.
    """
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise ClientError("a public key that agrees on nothing", "one of X25519", "ask who sent it") from None
    return derived(shared, info)


def derived(secret: bytes, info: bytes) -> bytes:
    """A key of 32 bytes of a secret, for one purpose."""
    return HKDF(hashes.SHA256(), SECRET, None, info).derive(secret)


def sealed(key: bytes, text: bytes) -> bytes:
    """A text that only the key opens; a key seals one text."""
    return AESGCM(key).encrypt(bytes(12), text, None)


def opened(key: bytes, raw: bytes) -> bytes | None:
    """What was sealed; None where it is not what the key's other owner sealed."""
    try:
        return AESGCM(key).decrypt(bytes(12), raw, None)
    except InvalidTag:
        return None


def tag(*parts: bytes) -> bytes:
    """Names secrets without telling them, as far as nobody can guess them: SHA-256 of parts of fixed lengths."""
    return hashlib.sha256(b"".join(parts)).digest()


# ----------------------------------------------------------------------------------------- shares


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Shares of a secret of 32 bytes, 32 bytes each: so many give it back, one less tell nothing (Shamir 1979).

    Examples:
        >>> secret = fresh()
        >>> shares = split(secret, threshold=2, count=3)
        >>> join({0: shares[0], 2: shares[2]}) == secret
        True
    """
    from Crypto.Protocol.SecretSharing import Shamir

    halves = (secret[:_HALF], secret[_HALF:])
    first, second = (Shamir.split(threshold, count, half, ssss=False) for half in halves)
    return [one + other for (_, one), (_, other) in zip(first, second, strict=True)]


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret of as many shares as the threshold says, by their places from 0.

    Whether it is the one that was split must be checked by whoever knows a name of it: any shares give something.
    """
    from Crypto.Protocol.SecretSharing import Shamir

    halves = (slice(_HALF), slice(_HALF, None))
    return b"".join(
        Shamir.combine([(place + 1, share[half]) for place, share in shares.items()], ssss=False) for half in halves
    )
