"""What is wrong with a certificate and its key, in lines for people; and whom this machine's own commands trust."""

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from supervisor import tls
from supervisor.config import Settings
from supervisor.config_load import load_settings
from supervisor.errors import BadConfiguration
from supervisor.tls import is_for, load_pair, no_tls, trusting, warnings_of, written_faults
from tests.fakes.certificates import authority, write_pair

NOW_S = 1_800_000_000.0
PEM = "-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n"
KEY = "-----BEGIN PRIVATE KEY-----\nbm90aGluZw==\n-----END PRIVATE KEY-----\n"


def faults(cert: Path, key: Path) -> list[str]:
    found = written_faults({"TLS_CERT": str(cert)}, {"TLS_KEY": str(key)})
    assert all("\n" not in fault for fault in found)
    return found


def settings(cert: Path, key: Path, **names: str) -> Settings:
    return load_settings({"HOME": "/h", "TLS_CERT": str(cert), "TLS_KEY": str(key)} | names, {})


def with_passphrase(key: Path, form: serialization.PrivateFormat) -> Path:
    secret = serialization.load_pem_private_key(key.read_bytes(), None)
    locked = key.with_name("locked.pem")
    locked.write_bytes(
        secret.private_bytes(serialization.Encoding.PEM, form, serialization.BestAvailableEncryption(b"x"))
    )
    return locked


def test_a_pair_that_fits_has_no_fault(tmp_path: Path) -> None:
    cert, key = write_pair(tmp_path)
    assert faults(cert, key) == []
    both = tmp_path / "both.pem"
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    assert faults(both, both) == []


def test_where_nothing_is_set_nothing_is_read(tmp_path: Path) -> None:
    cert, key = write_pair(tmp_path)
    assert written_faults({}, {}) == []
    assert written_faults({"TLS_CERT": str(tmp_path / "none")}, {"TLS_KEY": ""}) == []  # half a pair: config's to say
    assert written_faults({"TLS_CERT": "none.pem"}, {"TLS_KEY": str(key)}) == []
    assert written_faults({"TLS_CERT": str(cert)}, {"TLS_CERT": "/none", "TLS_KEY": str(key)}) == []


def test_both_files_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "odd.pem").write_text("hello")
    assert faults(tmp_path / "none.pem", tmp_path) == [
        f"TLS_CERT: {tmp_path}/none.pem cannot be read: No such file or directory",
        f"TLS_KEY: {tmp_path} cannot be read: Is a directory",
    ]
    assert faults(tmp_path / "odd.pem", tmp_path / "odd.pem") == [
        f"TLS_CERT: {tmp_path}/odd.pem does not begin with a certificate in PEM form (-----BEGIN CERTIFICATE-----)",
        f"TLS_KEY: {tmp_path}/odd.pem holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)",
    ]


def test_a_file_that_may_not_be_read_says_whom_to_let(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = write_pair(tmp_path)
    read = Path.read_text

    def refused(path: Path, encoding: str) -> str:
        if path == key:
            raise PermissionError(13, "Permission denied")
        return read(path, encoding)

    monkeypatch.setattr(Path, "read_text", refused)  # the tests may run as root, whom nothing is refused
    assert faults(cert, key) == [
        f"TLS_KEY: {key} may not be read by the user that Chimera runs as; let it (chgrp, chmod g+r)"
    ]


def test_what_only_looks_like_pem_is_told(tmp_path: Path) -> None:
    cert, key = write_pair(tmp_path)
    (tmp_path / "bad.pem").write_text(PEM)
    (tmp_path / "bad.key").write_text(KEY)
    assert "TLS_CERT: " in faults(tmp_path / "bad.pem", key)[0]
    assert faults(cert, tmp_path / "bad.key") == [f"TLS_KEY: {tmp_path}/bad.key holds no private key that can be read"]
    assert "does not begin with a certificate" in faults(key, key)[0]
    assert faults(cert, cert)[0].startswith("TLS_KEY: ")
    assert KEY.splitlines()[1] not in str(faults(tmp_path / "bad.pem", tmp_path / "bad.key"))


@pytest.mark.parametrize("form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL])
def test_a_passphrase_is_never_asked_for(tmp_path: Path, form: serialization.PrivateFormat) -> None:
    cert, key = write_pair(tmp_path)
    (fault,) = faults(cert, with_passphrase(key, form))
    assert fault.startswith("TLS_KEY: ")
    assert "has a passphrase" in fault
    assert "openssl pkey -in" in fault


def test_a_key_of_another_certificate_does_not_fit(tmp_path: Path) -> None:
    cert, _ = write_pair(tmp_path)
    _, other = write_pair(tmp_path, name="other")
    (fault,) = faults(cert, other)
    assert fault.startswith(f"TLS_KEY: {other} does not fit the first certificate in {cert}")
    of_rsa = trustme.CA(key_type=trustme.KeyType.RSA).issue_cert("localhost", key_type=trustme.KeyType.RSA)
    other.write_bytes(of_rsa.private_key_pem.bytes())
    assert "does not fit" in faults(cert, other)[0]


def test_a_chain_in_the_wrong_order_is_told(tmp_path: Path) -> None:
    cert, key = write_pair(tmp_path)
    wrong = tmp_path / "wrong.pem"
    wrong.write_bytes(authority().cert_pem.bytes() + cert.read_bytes())
    assert "which must be the server's own" in faults(wrong, key)[0]


def test_what_cannot_be_used_is_raised_with_all_its_faults(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration) as refused:
        load_pair(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), tmp_path / "a", tmp_path / "b")
    assert len(refused.value.faults) == 2


# -- warnings ----------------------------------------------------------------------------------------------------------


def test_a_good_pair_has_no_warning(tmp_path: Path) -> None:
    cert, key = write_pair(tmp_path)
    assert warnings_of(settings(cert, key), NOW_S) == []
    assert warnings_of(settings(cert, key, TRAEFIK_API_DOMAIN="api.example.com"), NOW_S) == []
    assert warnings_of(load_settings({"HOME": "/h"}, {}), NOW_S) == []


def test_a_key_that_everybody_can_read_is_a_warning(tmp_path: Path) -> None:
    cert, key = write_pair(tmp_path)
    key.chmod(0o644)
    assert faults(cert, key) == []
    assert warnings_of(settings(cert, key), NOW_S) == [
        f"TLS_KEY: {key} can be read by everybody on this machine: chmod o= {key}"
    ]


def test_a_certificate_that_has_ended_or_is_about_to_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = write_pair(tmp_path)
    said = {"notAfter": "Jan 15 08:00:00 2027 GMT", "subjectAltName": (("IP Address", "127.0.0.1"),)}
    monkeypatch.setattr(tls, "_said_by", lambda *_: said)
    end_s = ssl.cert_time_to_seconds(said["notAfter"])  # type: ignore[arg-type]
    assert warnings_of(settings(cert, key), end_s - 3 * 86400) == []
    assert warnings_of(settings(cert, key), end_s - 86400) == [
        f"TLS_CERT: {cert} ends soon (Jan 15 08:00:00 2027 GMT): renew it"
    ]
    assert warnings_of(settings(cert, key), end_s + 1) == [
        f"TLS_CERT: {cert} has ended (Jan 15 08:00:00 2027 GMT): renew it"
    ]


def test_a_certificate_for_other_names_is_a_warning(tmp_path: Path) -> None:
    cert, key = write_pair(tmp_path, "gpu.example.com", "*.ai.example.com")
    assert warnings_of(settings(cert, key), NOW_S) == [
        f"TLS_CERT: {cert} is not for 127.0.0.1 (which clients here are told; TRAEFIK_API_DOMAIN tells them another "
        "name); it is for gpu.example.com, *.ai.example.com"
    ]
    names = {"TRAEFIK_API_DOMAIN": "gpu.example.com,x.ai.example.com", "TRAEFIK_FRONTEND_DOMAIN": "page.example.com"}
    assert warnings_of(settings(cert, key, **names), NOW_S) == [
        f"TLS_CERT: {cert} is not for page.example.com (TRAEFIK_FRONTEND_DOMAIN); it is for gpu.example.com, "
        "*.ai.example.com"
    ]


def test_a_certificate_that_no_server_may_show_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> dict[str, object]:
        error = ssl.SSLCertVerificationError()
        error.verify_message = "unsupported certificate purpose"
        raise error

    cert, key = write_pair(tmp_path)
    monkeypatch.setattr(tls, "_said_by", refused)
    assert warnings_of(settings(cert, key), NOW_S) == [
        f"TLS_CERT: clients refuse {cert}: unsupported certificate purpose"
    ]


@pytest.mark.parametrize(
    ("names", "host", "yes"),
    [
        (["a.example"], "a.example", True),
        (["a.example"], "b.a.example", False),
        (["*.example"], "a.example", True),
        (["*.example"], "b.a.example", False),
        (["*.example"], "example", False),
        (["127.0.0.1"], "127.0.0.1", True),
        (["0:0:0:0:0:0:0:1", "a"], "::1", True),
        (["*.0.0.1"], "127.0.0.1", False),
        ([], "a", False),
    ],
)
def test_which_hosts_a_certificate_is_for(names: list[str], host: str, yes: bool) -> None:
    assert is_for(names, host) is yes


# -- trust -------------------------------------------------------------------------------------------------------------

Handshake = Callable[[Path, Path], None]


@pytest.fixture
def shake(tmp_path: Path) -> Handshake:
    """A client that trusts the first certificate meets a server that shows the second."""

    def shaken(trusted: Path, shown: Path) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(shown, shown.with_suffix(".key"))
        tls._said_by(context, trusting(trusted))

    return shaken


def test_the_servers_own_certificate_is_trusted_whatever_its_name(tmp_path: Path, shake: Handshake) -> None:
    cert, _ = write_pair(tmp_path, "gpu.example.com")
    shake(cert, cert)


def test_no_other_of_the_same_authority_is(tmp_path: Path, shake: Handshake) -> None:
    """The file has the authority's certificate too, behind the server's own."""
    cert, _ = write_pair(tmp_path)
    other, _ = write_pair(tmp_path, name="other")
    chain = tmp_path / "chain.pem"
    chain.write_bytes(cert.read_bytes() + authority().cert_pem.bytes())
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(chain, other)


@pytest.mark.parametrize("content", [None, "", PEM])
def test_a_file_that_cannot_be_trusted_is_a_fault(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "cert.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(BadConfiguration, match="TLS_CERT: "):
        trusting(file)


def test_a_client_of_plain_http_trusts_nobody() -> None:
    context = no_tls()
    assert (context.get_ca_certs(), context.verify_mode, context.check_hostname) == ([], ssl.CERT_REQUIRED, True)
