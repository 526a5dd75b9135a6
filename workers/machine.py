"""Whether a machine can train: its device, its precision, its memory. It knows no task in particular."""

import os

import torch

from decentral.errors import ConfigError, IncapableError

PRECISIONS = ("fp32", "bf16")
#: fp32 values kept for each parameter: weight, gradient, two moments of AdamW; anchor, momentum, delta, residual and
#: what a reducer left out of means, of the swarm.
VALUES_PER_PARAMETER = 9


def check_device(device: str, *, bf16: bool) -> None:
    """Make sure that this machine has ``device``, and with ``bf16`` that it computes in it.

    Raises:
        ConfigError: ``device`` is not a device's name.
        IncapableError: it is absent or lacks bf16.
    """
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not (kind == "cuda" and index.isdecimal())):
        raise ConfigError(f"device is {device!r}", hint="It must be cpu, cuda, cuda:N or mps.")
    if kind == "cuda" and (seen := torch.cuda.device_count()) <= int(index or 0):
        raise IncapableError(
            f"device {device!r} was asked for, but torch {torch.__version__} sees {seen} CUDA devices",
            hint="Use --device cpu, or install a torch build that matches the driver (nvidia-smi shows it).",
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise IncapableError(
            "device 'mps' was asked for, but this machine has none", hint="Use --device cpu. MPS needs an Apple GPU."
        )
    if bf16 and not _has_bf16(kind):
        raise IncapableError(
            f"precision 'bf16' was asked for, but {device!r} cannot compute in it",
            hint="Every worker of a swarm may use its own precision: set precision to fp32 on this one.",
        )


def check_memory(required_bytes: int, what: str, device: str, hint: str) -> None:
    """Make sure that ``device`` has so much memory free.

    Args:
        required_bytes: an estimate.
        what: takes it, to begin a sentence.
        device: of this machine.
        hint: what to do where it does not.

    Raises:
        IncapableError: it has not.
    """
    available = available_bytes(device)
    if required_bytes > available:
        raise IncapableError(
            f"{what} takes about {required_bytes / 2**20:,.0f} MiB, and {device!r} has {available / 2**20:,.0f} MiB "
            "free",
            hint=hint,
        )


def available_bytes(device: str) -> int:
    """Memory that a new process could take on ``device``; what the system does not tell counts as all there is."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _has_bf16(kind: str) -> bool:
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind == "cpu" or bool(torch.backends.mps.is_macos_or_newer(14, 0))
