"""A key pair on disk, in hivemind's file format, and signatures that carry their public key.

A peer id is the hash of a public key, so a signature that brings the key along can be checked by anybody who knows
only the id. Legend of the signature blob: two bytes with the length of the public key (big endian), the public key
as libp2p packs it (protobuf ``PublicKey``), the RSA-PSS signature.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import stat
import tempfile
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from decentral.adapters.hivemind_light import DecodeError, PeerID, crypto_pb2
from decentral.errors import IdentityError
from decentral.types import PeerId

_log = logging.getLogger(__name__)

_KEY_BITS = 2048
_PADDING = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.DIGEST_LENGTH)
#: Nothing else that is signed with this key (libp2p's handshakes) begins like this, so neither passes for the other.
_DOMAIN = b"decentral record:"
#: An identity file of a 4096-bit key has 2.4 kB.
_MAX_FILE_BYTES = 16384
#: A signature with its key has 557 bytes (2048-bit key) or 1069 (4096-bit).
_MAX_SIGNATURE_BYTES = 1200
#: libp2p puts keys up to this length (Ed25519) into the id itself instead of their hash.
_MAX_INLINED_KEY_BYTES = 42


def peer_id_of(public_key: bytes) -> PeerId:
    """The peer id that a public key, packed as libp2p does (protobuf ``PublicKey``), belongs to.

    Source: libp2p specs, peer-ids: a multihash, ``identity`` (00) for keys up to 42 bytes, else ``sha2-256`` (12).
    """
    if len(public_key) <= _MAX_INLINED_KEY_BYTES:
        multihash = bytes([0x00, len(public_key)]) + public_key
    else:
        multihash = bytes([0x12, 32]) + hashlib.sha256(public_key).digest()
    return PeerId(PeerID(multihash).to_base58())


class KeyIdentity:
    """Implements ``ports.identity.Identity`` with an RSA key.

    Args:
        key: the private key.
    """

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        self._key = key
        self._public = _packed_public_key(key.public_key())
        self._peer_id = peer_id_of(self._public)

    @classmethod
    def generate(cls) -> "KeyIdentity":
        """A new identity (50 to 500 ms)."""
        return cls(rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS))

    @property
    def peer_id(self) -> PeerId:
        """The identity that the public key hashes to."""
        return self._peer_id

    def sign(self, data: bytes) -> bytes:
        """A signature of ``data`` with the public key in front (557 bytes, 2 ms)."""
        signature = self._key.sign(_DOMAIN + data, _PADDING, hashes.SHA256())
        return len(self._public).to_bytes(2, "big") + self._public + signature

    @staticmethod
    def verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
        """Whether ``peer`` signed exactly ``data``. Any malformed signature is simply ``False``."""
        if len(signature) > _MAX_SIGNATURE_BYTES:
            return False
        size = int.from_bytes(signature[:2], "big")
        packed, rest = signature[2 : 2 + size], signature[2 + size :]
        owner = _owner_of(packed)
        if owner is None or owner[0] != peer:
            return False
        try:
            owner[1].verify(rest, _DOMAIN + data, _PADDING, hashes.SHA256())
        except InvalidSignature:
            return False
        return True

    def packed(self) -> bytes:
        """The private key in the format of hivemind's identity files (protobuf ``PrivateKey``)."""
        der = self._key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        packed: bytes = crypto_pb2.PrivateKey(key_type=crypto_pb2.RSA, data=der).SerializeToString()
        return packed

    def save(self, path: Path) -> None:
        """Write the identity file, readable by its owner only. The folder is made if it is missing.

        Raises:
            IdentityError: the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(self.packed())
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as err:
            raise IdentityError(f"Cannot write the identity file {path}: {err.strerror}.") from err


class IdentityFile:
    """An identity file in use: created if missing, and locked, so that no second worker here runs under the same id.

    Args:
        path: the file.

    Raises:
        IdentityError: unreadable, malformed, or in use by another worker on this machine.
    """

    def __init__(self, path: Path) -> None:
        self.is_new = not path.exists()
        if self.is_new:
            KeyIdentity.generate().save(path)
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as err:
            raise IdentityError(f"Cannot read the identity file {path}: {err.strerror}.") from err
        try:
            self._lock(path)
            self.identity = self._read(path)
        except BaseException:
            self.close()
            raise

    def _lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IdentityError(
                f"Identity {path} is in use by another worker on this machine.",
                hint="Give each worker an identity file of its own; a missing one is created.",
            ) from None
        except OSError:
            pass  # A file system without locks: the swarm itself is asked as well.

    def _read(self, path: Path) -> KeyIdentity:
        if stat.S_IMODE(os.fstat(self._handle).st_mode) & 0o077:
            _log.warning("Others on this machine can read the private key %s: chmod 600 %s", path, path)
        try:
            return unpack(os.read(self._handle, _MAX_FILE_BYTES))
        except OSError as err:
            raise IdentityError(f"Cannot read the identity file {path}: {err.strerror}.") from err
        except ValueError as err:
            raise IdentityError(
                f"{path} is not an identity file: {err}.",
                hint="It has to be an RSA key as decentral or hivemind write it. Move it away to get a new identity.",
            ) from err

    def close(self) -> None:
        """Give the lock back. Idempotent."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def unpack(data: bytes) -> KeyIdentity:
    """The identity in the bytes of an identity file.

    Raises:
        ValueError: not a packed RSA key of 2048 to 4096 bits.
    """
    if not data:
        raise ValueError("it is empty")
    if data.startswith(b"-----BEGIN"):
        raise ValueError("it is a PEM file")
    try:
        key = serialization.load_der_private_key(crypto_pb2.PrivateKey.FromString(data).data, password=None)
    except (DecodeError, ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("no private key found in it") from None
    if not isinstance(key, rsa.RSAPrivateKey) or not 2048 <= key.key_size <= 4096:
        raise ValueError("its key is not RSA of 2048 to 4096 bits")
    return KeyIdentity(key)


def _packed_public_key(key: rsa.RSAPublicKey) -> bytes:
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    packed: bytes = crypto_pb2.PublicKey(key_type=crypto_pb2.RSA, data=der).SerializeToString()
    return packed


@lru_cache(maxsize=1024)
def _owner_of(packed: bytes) -> tuple[PeerId, rsa.RSAPublicKey] | None:
    """The peer that a packed public key belongs to and the key, or None if it is none that we accept."""
    try:
        key = serialization.load_der_public_key(crypto_pb2.PublicKey.FromString(packed).data)
    except (DecodeError, ValueError, TypeError, UnsupportedAlgorithm):
        return None
    # Other exponents are legal, but make a verification as slow as their owner likes.
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size > 4096 or key.public_numbers().e != 65537:
        return None
    return peer_id_of(packed), key
