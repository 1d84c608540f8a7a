"""The gateway's certificate and its key: what is wrong with them, and how this machine's own commands trust them.

Reads the files that TLS_CERT and TLS_KEY name. The key's text is in no message.
"""

import ipaddress
import re
import ssl
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from supervisor.config import Settings
from supervisor.errors import BadConfiguration

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_KEY = re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----")
# RFC 5958 and RFC 1421: a key that a passphrase opens.
_LOCKED = ("-----BEGIN ENCRYPTED PRIVATE KEY-----", "Proc-Type: 4,ENCRYPTED")
# What OpenSSL says of a key of another certificate, of the same kind and of another one.
_NO_MATCH = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
# X509_V_FLAG_NO_CHECK_TIME (X509_VERIFY_PARAM_set_flags(3)), for which Python has no name.
_NO_CHECK_TIME = 0x200000

Named = Mapping[str, Any]
# A certificate is renewed weeks before its end, or, if it lives for days only, days before.
ENDS_SOON_S = 2 * 24 * 3600.0


def load_pair(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Have a context show a certificate. Raises BadConfiguration with everything that is wrong with the two files."""
    faults: list[str] = []
    _read_certificate(cert, faults)
    secret = _read("TLS_KEY", key, faults)
    if secret is not None and any(mark in secret for mark in _LOCKED):
        faults.append(
            f"TLS_KEY: {key} has a passphrase, which nobody is there to type; write it without one: "
            f"openssl pkey -in {key} -out NEW"
        )
    elif secret is not None and not _KEY.search(secret):
        faults.append(f"TLS_KEY: {key} holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)")
    if faults:
        raise BadConfiguration(faults)
    try:
        context.load_cert_chain(cert, key, password="")  # else OpenSSL would ask at the terminal
    except ssl.SSLError as error:
        raise BadConfiguration([_why(error, cert, key)]) from error
    except OSError as error:  # it was there a moment ago
        raise BadConfiguration([f"TLS_KEY: {key} or {cert} cannot be read: {error.strerror}"]) from error


def _read(name: str, path: Path, faults: list[str]) -> str | None:
    try:
        return path.read_text(encoding="latin-1")
    except PermissionError:
        faults.append(f"{name}: {path} may not be read by the user that Chimera runs as; let it (chgrp, chmod g+r)")
    except OSError as error:
        faults.append(f"{name}: {path} cannot be read: {error.strerror}")
    return None


def _read_certificate(cert: Path, faults: list[str]) -> ssl.SSLContext | None:
    """Return a client's side that trusts the first certificate of a file; None: a fault was added."""
    text = _read("TLS_CERT", cert, faults)
    if text is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    try:
        first = _CERTIFICATE.search(text)
        context.load_verify_locations(cadata=first[0] if first else text)
    except (ssl.SSLError, ValueError):
        faults.append(f"TLS_CERT: {cert} does not begin with a certificate in PEM form (-----BEGIN CERTIFICATE-----)")
        return None
    return context


def _why(error: ssl.SSLError, cert: Path, key: Path) -> str:
    if error.reason in _NO_MATCH:
        return (
            f"TLS_KEY: {key} does not fit the first certificate in {cert}, which must be the server's own; "
            "those that signed it follow"
        )
    if not error.reason:  # "PEM lib": the certificate has been read, the key cannot be
        return f"TLS_KEY: {key} holds no private key that can be read"
    return f"TLS_CERT: {cert} cannot be used: {error.reason.lower().replace('_', ' ')}"


def written_faults(environ: Mapping[str, str], dotenv: Mapping[str, str | None]) -> list[str]:
    """Return what is wrong with the files that the settings name, before it is known whether the rest is good."""
    cert, key = (environ.get(name) or dotenv.get(name) or "" for name in ("TLS_CERT", "TLS_KEY"))
    if not cert.startswith("/") or not key.startswith("/") or "\0" in cert + key:
        return []  # said by the settings themselves
    try:
        load_pair(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), Path(cert), Path(key))
    except BadConfiguration as error:
        return error.faults
    return []


# -- what others will say of it ----------------------------------------------------------------------------------------


def warnings_of(settings: Settings, now_s: float) -> list[str]:
    """Return what others will find wrong with the certificate of these settings, if they have one.

    `now_s` is the time of day, in seconds since 1970. Raises BadConfiguration when it cannot be used at all.
    """
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None or key is None:
        return []
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    load_pair(context, cert, key)
    found: list[str] = []
    if _open_to_all(key):
        found.append(f"TLS_KEY: {key} can be read by everybody on this machine: chmod o= {key}")
    try:
        said = _said_by(context, trusting(cert))
    except ssl.SSLError as error:
        why = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else error.reason
        return [*found, f"TLS_CERT: clients refuse {cert}: {why}"]
    ends_s = ssl.cert_time_to_seconds(said["notAfter"])
    if ends_s < now_s + ENDS_SOON_S:
        found.append(
            f"TLS_CERT: {cert} {'ends soon' if ends_s > now_s else 'has ended'} ({said['notAfter']}): renew it"
        )
    names = [str(name) for _, name in said.get("subjectAltName", ())]
    asked = [(name, "TRAEFIK_API_DOMAIN") for name in settings.api_domains]
    asked += [(name, "TRAEFIK_FRONTEND_DOMAIN") for name in settings.page_domains]
    asked = asked or [(settings.local_host, "which clients here are told; TRAEFIK_API_DOMAIN tells them another name")]
    found += [
        f"TLS_CERT: {cert} is not for {name} ({why}); it is for {', '.join(names) or 'no name'}"
        for name, why in asked
        if not is_for(names, name)
    ]
    return found


def ends_at_s(context: ssl.SSLContext, cert: Path) -> float | None:
    """Return when the certificate that a context shows ends, in seconds since 1970; None where no client reads it.

    Those that signed it, which follow it in the file, may end earlier. Raises BadConfiguration when there is no such
    file.
    """
    try:
        return float(ssl.cert_time_to_seconds(_said_by(context, trusting(cert))["notAfter"]))
    except ssl.SSLError:
        return None


def _open_to_all(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def _said_by(context: ssl.SSLContext, client: ssl.SSLContext) -> Named:
    """Return what a certificate says, told by a handshake with ourselves. Raises ssl.SSLError."""
    came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
    there, here = context.wrap_bio(came, goes, server_side=True), client.wrap_bio(goes, came)
    for side in (here, there) * 3:  # as many turns as there can be
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass  # the other side's turn
    return here.getpeercert() or {}


def is_for(names: Sequence[str], host: str) -> bool:
    """Say whether a certificate with these names is for a host name or address (RFC 6125, 6.4)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in names or f"*.{host.partition('.')[2]}" in names
    return any(_address(name) == address for name in names)


def _address(name: str) -> object:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


# -- who trusts it -----------------------------------------------------------------------------------------------------


def trusting(cert: Path) -> ssl.SSLContext:
    """Return what this machine's own commands speak TLS with: the server's certificate itself is trusted, no other is.

    Not even one of the same authority: so the name that it is for, and its dates, which are for other clients, do not
    matter. Raises BadConfiguration when there is no such file.
    """
    faults: list[str] = []
    context = _read_certificate(cert, faults)
    if context is None:
        raise BadConfiguration(faults)
    return context


def no_tls() -> ssl.SSLContext:
    """Return what a client of plain HTTP on loopback is given for TLS: it trusts nobody.

    httpx would else read every authority that the machine trusts, for each client: 30 ms in which nothing goes on.
    """
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
