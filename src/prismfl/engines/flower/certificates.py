"""Certificates and keys for a trial: one authority, one server certificate, one key pair a client."""

import datetime
import ipaddress
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from prismfl.data.files import write_atomic
from prismfl.engines.flower.processes import LOCAL
from prismfl.errors import RunFolderError

_DAYS = 365
_AUTHORITY = "prismfl trial authority"
_Key = ec.EllipticCurvePrivateKey


def make_certificates(out: Path, hosts: list[str], clients: int) -> list[Path]:
    """Write `ca.crt`, `ca.key`, `server.crt`, `server.key`, `client-N.key` and `client-N.pub`; all ECDSA P-384.

    hosts: names and addresses by which clients reach the server.  Keys are readable by their owner alone.
    Raises RunFolderError where files are already, or cannot be written.
    """
    if out.is_dir() and any(out.iterdir()):
        raise RunFolderError(f"files in {out}", "a new or empty folder", "choose another --out: keys are not replaced")
    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    names = x509.SubjectAlternativeName([_alternative(host) for host in dict.fromkeys((*hosts, *LOCAL))])
    root = _certificate(_AUTHORITY, authority, authority, 0).add_extension(usage, critical=True)
    leaf = _certificate(hosts[0], server, authority, None).add_extension(names, critical=False)
    made = {
        "ca.crt": _signed(root, authority),
        "ca.key": _private(authority),
        "server.crt": _signed(leaf, authority),
        "server.key": _private(server),
    }
    for client in range(clients):
        key = ec.generate_private_key(ec.SECP384R1())
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        made[f"client-{client}.key"] = _private(key, serialization.PrivateFormat.OpenSSH)
        made[f"client-{client}.pub"] = public + f" client-{client}\n".encode()
    for name, content in made.items():
        _write(out / name, content)
    return [out / name for name in made]


def _certificate(subject: str, key: _Key, authority: _Key, path_length: int | None) -> x509.CertificateBuilder:
    """A certificate to be signed, of an authority if it says how long paths below it may be."""
    now, public = datetime.datetime.now(datetime.UTC), key.public_key()
    constraints = x509.BasicConstraints(ca=path_length is not None, path_length=path_length)
    known = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    return (
        x509.CertificateBuilder(_name(_AUTHORITY), _name(subject), public, x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(known, critical=False)
        .add_extension(constraints, critical=True)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _signed(builder: x509.CertificateBuilder, authority: _Key) -> bytes:
    return builder.sign(authority, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)


def _private(key: _Key, form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write(path: Path, content: bytes) -> None:
    before = os.umask(0o077)
    if path.suffix != ".key":
        os.umask(before)
    try:
        write_atomic(path, content)
    finally:
        os.umask(before)
