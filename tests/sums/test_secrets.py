"""Keys that are read, shares that are few, and seals that are broken."""

from itertools import combinations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from prismfl.errors import ClientError, SettingError
from prismfl.sums.secrets import (
    Identity,
    agreed,
    fresh,
    join,
    opened,
    public_key,
    public_of,
    sealed,
    split,
    verify,
)


def test_any_so_many_shares_give_the_secret_and_fewer_another():
    secret = fresh()
    shares = dict(enumerate(split(secret, threshold=3, count=5)))
    for chosen in combinations(shares, 3):
        assert join({place: shares[place] for place in chosen}) == secret
    for chosen in combinations(shares, 2):
        assert join({place: shares[place] for place in chosen}) != secret
    assert len(set(shares.values())) == 5 and secret not in shares.values()


def test_two_sites_agree_on_a_key_that_a_third_does_not_have():
    first, second, third = fresh(), fresh(), fresh()
    key = agreed(first, public_of(second), b"why")
    assert key == agreed(second, public_of(first), b"why")
    assert len({key, agreed(first, public_of(second), b"else"), agreed(third, public_of(second), b"why")}) == 3
    raw = sealed(key, b"a share")
    assert opened(key, raw) == b"a share"
    assert opened(fresh(), raw) is None and opened(key, raw[:-1] + bytes([raw[-1] ^ 1])) is None
    with pytest.raises(ClientError, match="agrees on nothing"):
        agreed(first, bytes(32), b"why")


def test_keys_are_read_as_they_are_made_and_others_are_refused(tmp_path):
    one = Identity.made()
    path = tmp_path / "client-0.key"
    pem = one.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for raw in (one.private(), pem):
        path.write_bytes(raw)
        assert Identity.read(path).public == one.public
    assert public_key(one.public + " client-0\n") == one.public
    wrong = [
        b"",
        b"no key",
        Identity(ec.generate_private_key(ec.SECP256R1())).private(),
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        ),
    ]
    for raw in wrong:
        path.write_bytes(raw)
        with pytest.raises(SettingError, match="P-384"):
            Identity.read(path)
    for line in ("", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp384 AAAA", "ssh-ed25519 AAAA", one.public[:-9]):
        with pytest.raises(SettingError, match="a public key"):
            public_key(line)


def test_a_signature_is_of_one_key_and_one_text():
    one = Identity.made()
    signature = one.sign(b"text")
    assert len(signature) == 96 and verify(one.public, signature, b"text")
    assert not verify(one.public, signature, b"texT") and not verify(one.public, bytes(96), b"text")
    assert not verify(Identity.made().public, signature, b"text")
