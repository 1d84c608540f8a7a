"""API keys: how one is made, told, found again and presented. Pure: randomness is handed in.

A key is `chimera-` and 32 random bytes. Of 256 random bits nobody can try a part worth mentioning, so one SHA-256 is
all that keeping them needs: slow hashes (bcrypt, argon2) make up for passwords that people can guess, and where one
ran for every request a gateway lost two thirds of its throughput to it (gpustack#1842).
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from gateway.headers import Named
from gateway.limits import Limits

SECRET_BYTES = 32
# How much of a key people are shown to know it by: of its 256 bits, 24.
SHOWN_CHARACTERS = len("chimera-") + 4
MOST_PRIORITY = 9

_FORM = re.compile(rb"chimera-[A-Za-z0-9_-]{43}")
_PRIORITY = re.compile(rb"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key; what it says itself is not among it.

    `priority` is the highest that it may ask for, `models` whether it may change the model store.
    """

    id: str
    name: str
    prefix: str
    limits: Limits
    priority: int
    models: bool
    created_at: datetime
    digest: bytes = field(repr=False)
    last_used_at: datetime | None = None


def make_secret(random: bytes) -> str:
    """Return a new key, of SECRET_BYTES random bytes."""
    return "chimera-" + base64.urlsafe_b64encode(random).rstrip(b"=").decode()


def shown(secret: str) -> str:
    """Return the beginning of a key, which may be shown."""
    return secret[:SHOWN_CHARACTERS]


def digest_of(secret: bytes) -> bytes:
    """Return what is kept of a key."""
    return hashlib.sha256(secret).digest()


def presented(named: Named) -> bytes | None:
    """Return the key that a request presents, None when it presents none, b"" when what it presents cannot be ours.

    `Authorization: Bearer` (OpenAI's clients, Ollama's) or `x-api-key` (Anthropic's). Never in the URL: those are
    written into logs everywhere. Of two, one that has the form of ours counts.
    """
    given: list[bytes] = []
    if bearer := named.get(b"authorization"):
        scheme, _, rest = bearer.strip().partition(b" ")
        if scheme.lower() == b"bearer":
            given.append(rest.strip())
    if own := named.get(b"x-api-key"):
        given.append(own.strip())
    for secret in given:
        if _FORM.fullmatch(secret):
            return secret
    return b"" if any(given) else None


def priority_of(named: Named, most: int) -> int | None:
    """Return the priority that a request asks for (X-Chimera-Priority), at most `most`; None when it is no number."""
    asked = named.get(b"x-chimera-priority")
    if asked is None:
        return 0
    return min(int(asked), most) if _PRIORITY.fullmatch(asked.strip()) else None


class KeyBook:
    """The keys that count, in memory: what a request is checked against. Revoked ones are not in it."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._by_digest: dict[bytes, Key] = {}
        self._by_id: dict[str, Key] = {}
        for key in keys:
            self.put(key)

    def put(self, key: Key) -> None:
        """Add a key, or put it in the place of what was known of it."""
        self._by_digest[key.digest] = key
        self._by_id[key.id] = key

    def drop(self, key_id: str) -> None:
        """Forget a key."""
        del self._by_digest[self._by_id.pop(key_id).digest]

    def get(self, key_id: str) -> Key | None:
        """Return a key by its id."""
        return self._by_id.get(key_id)

    def all(self) -> list[Key]:
        """Return every key, in the order in which they came."""
        return list(self._by_id.values())

    def find(self, secret: bytes) -> Key | None:
        """Return the key that this is, at the cost of one SHA-256.

        How long the search takes may depend on the digest of what was sent, whose bits nobody can choose, never on
        how much of a key was right: there is nothing to be felt out step by step. The last word has a comparison in
        constant time.
        """
        digest = digest_of(secret)
        key = self._by_digest.get(digest)
        return key if key is not None and hmac.compare_digest(key.digest, digest) else None
