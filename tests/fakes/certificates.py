"""Certificates for tests: an authority of their own, which nobody else trusts."""

import ssl
from datetime import datetime
from functools import cache
from pathlib import Path

import trustme

from gateway.tls import server_context

NAMES = ("localhost", "127.0.0.1", "::1", "api.example.com", "page.example.com")


@cache
def authority() -> trustme.CA:
    """Return the authority of this run."""
    return trustme.CA()


@cache
def certified() -> ssl.SSLContext:
    """Return what a gateway speaks TLS with, certified for NAMES."""
    context = server_context()
    authority().issue_cert(*NAMES).configure_cert(context)
    return context


def trusting(*protocols: str) -> ssl.SSLContext:
    """Return a client's side that trusts the authority and speaks one of `protocols`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the default one would read all authorities of the machine
    authority().configure_trust(context)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def write_pair(
    folder: Path, *names: str, name: str = "server", ends_at: datetime | None = None
) -> tuple[Path, Path]:  # fmt: skip
    """Write a certificate, with the authority's, and its key as a server's operator has them; return their paths."""
    made = authority().issue_cert(*(names or NAMES), not_after=ends_at)
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    key.touch(0o600)
    key.write_bytes(made.private_key_pem.bytes())
    return cert, key
