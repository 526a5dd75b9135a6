"""The key in an address: whoever has it may enter a private swarm, and knows that swarm again.

An invitation is 16 random bytes, of which its Ed25519 key is made, and a fingerprint of the founder's public key. In an
address it is a token of 43 characters behind ``#``. Knows no peer and no swarm.
"""

import base64
import binascii
import hashlib
import re
import secrets
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: Of a public key, as it travels.
PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64
_SECRET_BYTES = 16
_PRINT_BYTES = 16
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


class Key:
    """An Ed25519 key pair.

    Args:
        seed: 32 secret bytes, which are the private key.
    """

    def __init__(self, seed: bytes) -> None:
        self.seed = seed
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> "Key":
        """A new one."""
        return cls(secrets.token_bytes(32))

    def sign(self, data: bytes) -> bytes:
        """A signature of 64 bytes."""
        return self._private.sign(data)


def is_signed(public: bytes, data: bytes, signature: bytes) -> bool:
    """Whether the key with this public half signed exactly ``data``; anything malformed is ``False``."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(public: bytes) -> bytes:
    """16 bytes by which a founder's public key is known."""
    return hashlib.blake2b(public, digest_size=_PRINT_BYTES, person=b"decentral founds").digest()


@dataclass(frozen=True, slots=True)
class Invitation:
    """See the module. Whoever shows it in a text gives it away: only ``token`` does."""

    secret: bytes = field(repr=False)
    founder: bytes
    """Fingerprint of the founder's key."""

    @classmethod
    def create(cls, founder: bytes) -> "Invitation":
        """A new one, into the swarm of the founder with this fingerprint."""
        return cls(secrets.token_bytes(_SECRET_BYTES), founder)

    @classmethod
    def parse(cls, token: str) -> "Invitation":
        """The inverse of ``token``.

        Raises:
            ValueError: it is no such text.
        """
        if not _TOKEN.fullmatch(token):
            raise ValueError(f"it has {len(token)} characters, and a token has 43 letters, digits, - and _")
        try:
            data = base64.urlsafe_b64decode(f"{token}=")
        except binascii.Error as err:
            raise ValueError("it is no token") from err
        return cls(data[:_SECRET_BYTES], data[_SECRET_BYTES:])

    def token(self) -> str:
        """What an address ends in, behind ``#``."""
        return base64.urlsafe_b64encode(self.secret + self.founder).decode().rstrip("=")

    def key(self) -> Key:
        """With which its holder proves that he has it."""
        return Key(hashlib.blake2b(self.secret, key=self.founder, person=b"decentral enters", digest_size=32).digest())
