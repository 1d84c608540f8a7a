"""TLS on one connection, as bytes in and bytes out.

What has come from the socket goes in and what of a request was in it comes out; what is to be sent goes in and what
the socket gets comes out. Nothing here waits: where a connection waits, by when, and how much of it is kept, is decided
by `stream` and `outgoing`, with TLS as without it.
"""

import ssl

import trio

# RFC 7301. HTTP/2 for those who know it; which of the two is spoken shows in a connection's first bytes (`framing`).
PROTOCOLS = ("h2", "http/1.1")
# RFC 8446, 5.1: the type of the record with which each client begins.
_HANDSHAKE = 0x16
# RFC 8446, 5.1: no record has more.
_RECORD_BYTES = 16 * 1024


class NotTls(Exception):
    """The client speaks something else."""


def server_context() -> ssl.SSLContext:
    """Return how TLS is spoken here, still without a certificate: version 1.2 or newer, Python's choice of ciphers."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(list(PROTOCOLS))
    # a client could have the costly part of a handshake done again and again, and a write would wait for a read
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


class Tls:
    """The server's end of one connection. It keeps its context, whatever the next connections get."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.ended = False  # the client has said that nothing more comes
        self._ready = False  # the handshake is complete
        self._begun = False
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._came, self._goes, server_side=True)

    def decrypt(self, data: bytes) -> bytes:
        """Return what of requests is complete with `data`; nothing during the handshake, and within a record.

        Raises NotTls, and BrokenResourceError when the connection can only be ended. Whatever happens, TLS itself may
        then have something `to_send`.
        """
        if not self._begun and data[0] != _HANDSHAKE:
            raise NotTls
        self._begun = True
        self._came.write(data)
        parts: list[bytes] = []
        try:
            if not self._ready:
                self._tls.do_handshake()
                self._ready = True
            while part := self._tls.read(_RECORD_BYTES):
                parts.append(part)
            self.ended = True
        except ssl.SSLWantReadError:
            pass  # the rest of a record is still to come
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(f"TLS: {error.reason}") from error
        return b"".join(parts)

    def encrypt(self, data: bytes | bytearray | memoryview) -> bytes:
        """Return what the socket gets. Raises BrokenResourceError when the connection can only be ended."""
        try:
            if data:
                self._tls.write(data)
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(f"TLS: {error.reason}") from error
        return self._goes.read()

    def to_send(self) -> bytes:
        """Return what TLS itself has to say: its part of the handshake, an alert. It may be nothing."""
        return self._goes.read()

    def close(self) -> bytes:
        """Return what tells the client that nothing more comes, and that nothing was cut off (RFC 8446, 6.1)."""
        if self._ready:
            try:
                self._tls.unwrap()
            except ssl.SSLError:
                pass  # the client's own word is not waited for
        return self._goes.read()
