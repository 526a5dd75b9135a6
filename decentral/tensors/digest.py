"""A short fingerprint of tensors, by which workers find out whether they hold the same anchor."""

import torch
import xxhash
from torch import Tensor

#: Of what ``digest_bytes`` returns.
DIGEST_BYTES = 8


def digest(*tensors: Tensor) -> str:
    """Fingerprint tensors bit for bit.

    Two workers get the same digest if and only if (up to collisions) every value has the same 32 bits: ``0.0`` and
    ``-0.0`` differ although they compare equal, and NaNs with the same bits agree although they compare different.
    Only the number of values counts, not the shape. Where one tensor ends and the next begins matters.

    Args:
        tensors: float32 on the CPU, any shape. Hashed in place if contiguous, otherwise copied first.

    Returns:
        16 hex characters (64 bits of XXH3). It detects differences and does not authenticate; a cryptographic hash
        would take a hundred times as long, seconds a round with a billion parameters.

    Raises:
        ValueError: a tensor of another dtype or on another device.
    """
    hasher = xxhash.xxh3_64()
    for tensor in tensors:
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise ValueError(f"digest takes float32 tensors on the CPU, got {tensor.dtype} on {tensor.device}")
        hasher.update(tensor.numel().to_bytes(8, "little"))
        hasher.update(tensor.detach().contiguous().numpy().data)
    return hasher.hexdigest()


def digest_bytes(data: bytes | memoryview) -> bytes:
    """Fingerprint bytes: ``DIGEST_BYTES`` of XXH3, which finds damage and does not authenticate."""
    return xxhash.xxh3_64(data).digest()
