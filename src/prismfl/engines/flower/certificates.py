"""Certificates and keys for a trial: one authority, one server certificate, one key pair a client."""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from prismfl.data.files import write_atomic
from prismfl.errors import RunFolderError

_DAYS = 365
_LOCAL = ("localhost", "127.0.0.1", "::1")


def make_certificates(out: Path, hosts: list[str], clients: int) -> list[Path]:
    """Write `ca.crt`, `ca.key`, `server.crt`, `server.key`, `client-N.key` and `client-N.pub`; all ECDSA P-384.

    hosts: names and addresses by which clients reach the server.  Keys are readable by their owner alone.
    Raises RunFolderError where files are already, or cannot be written.
    """
    if out.is_dir() and any(out.iterdir()):
        raise RunFolderError(f"files in {out}", "a new or empty folder", "choose another --out: keys are not replaced")
    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    issuer = _name("prismfl trial authority")
    root = _base(issuer, issuer, authority).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    root = root.add_extension(usage, critical=True)
    leaf = _base(_name(hosts[0]), issuer, server).add_extension(_alternatives(hosts), critical=False)
    leaf = leaf.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    made = {
        "ca.crt": _pem(_signed(root, authority, authority)),
        "ca.key": _private(authority),
        "server.crt": _pem(_signed(leaf, authority, authority)),
        "server.key": _private(server),
    }
    for client in range(clients):
        made |= _pair(client)
    return [_write(out / name, content) for name, content in made.items()]


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _base(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=_DAYS))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _signed(
    builder: x509.CertificateBuilder, by: ec.EllipticCurvePrivateKey, authority: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    known = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    return builder.add_extension(known, critical=False).sign(by, hashes.SHA384())


def _alternatives(hosts: list[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([_alternative(host) for host in dict.fromkeys((*hosts, *_LOCAL))])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pair(client: int) -> dict[str, bytes]:
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return {
        f"client-{client}.key": _private(key, serialization.PrivateFormat.OpenSSH),
        f"client-{client}.pub": public + f" client-{client}\n".encode(),
    }


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(
    key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8
) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write(path: Path, content: bytes) -> Path:
    if path.suffix != ".key":
        write_atomic(path, content)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(0o600)
    write_atomic(path, content)
    path.chmod(0o600)
    return path
