"""Whether a machine is fit for a worker, as far as it can tell by itself: no network is asked. See ``doctor``."""

import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from decentral import PROTOCOL, __version__
from decentral.adapters.port import ensure_free
from decentral.errors import PortTakenError, UsageError
from decentral.monitor.figures import size
from decentral.run.findings import Finding, Mark

_LIBRARIES = ("torch", "hivemind", "numpy", "protobuf")
#: Least that a small model takes, with three checkpoints on the disk.
_MIN_MEMORY_BYTES = 1 << 30
_MIN_DISK_BYTES = 1 << 30
#: Streams served at a time take one each, and so do calls.
_MIN_FILES = 1024
_GOOD_FILES = 65_536
_COMMAND_S = 5.0


def machine_findings(folder: Path, device: str) -> Iterator[Finding]:
    """What there is to say of this machine.

    Args:
        folder: where a worker is to keep its run; need not exist.
        device: on which it is to train, as ``--device`` takes it; empty for the best that there is.
    """
    yield _versions()
    yield _device(device)
    yield _memory()
    yield _disk(folder)
    yield _files()


def port_finding(host: str, port: int) -> Finding:
    """Whether a worker can listen there."""
    try:
        ensure_free(host, port)
    except PortTakenError as err:
        return Finding("listen", Mark.NOTE, f"{err.message} If that is a worker, this is what is asked about below.")
    except UsageError as err:
        return Finding("listen", Mark.MEND, err.message, err.hint)
    return Finding("listen", Mark.FINE, f"port {port} of {host} is free to listen on")


def firewall() -> str:
    """The command that lets ``{port}`` through this machine's firewall; empty if none is known to be at work."""
    if _reads("/etc/ufw/ufw.conf", "ENABLED=yes"):
        return "sudo ufw allow {port}/tcp"
    if _says("firewall-cmd", "--state").strip() == "running":
        return "sudo firewall-cmd --permanent --add-port={port}/tcp && sudo firewall-cmd --reload"
    rules = _says("nft", "list", "ruleset")  # as root alone; iptables of today has its rules there as well
    if "hook input" in rules and ("drop" in rules or "reject" in rules):
        return "sudo iptables -I INPUT -p tcp --dport {port} -j ACCEPT"
    return ""


def _versions() -> Finding:
    found = {name: _version(name) for name in _LIBRARIES}
    listed = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    text = f"decentral {__version__} (protocol {PROTOCOL}), Python {platform.python_version()}, {listed}"
    if missing := [name for name, version in found.items() if not version]:
        return Finding("versions", Mark.MEND, text, f"pip install {' '.join(missing)}")
    return Finding("versions", Mark.FINE, text)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _device(device: str) -> Finding:
    import torch  # takes a second, which nothing else here does

    driver = _says("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").strip().partition("\n")[0]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        text = f"{', '.join(names)}; driver {driver or 'unknown'}, CUDA {torch.version.cuda} of torch"
        index = device.partition(":")[2]
        if index and int(index) >= len(names):
            return Finding("device", Mark.MEND, f"there is no {device}: {text}", f"--device cuda:{len(names) - 1}")
        return Finding("device", Mark.FINE, text, "" if device else "decentral worker --device cuda ...")
    if device.startswith("cuda") or driver:
        text = f"torch {torch.__version__} sees no CUDA device" + (f", though driver {driver} does" if driver else "")
        mark = Mark.MEND if device.startswith("cuda") else Mark.NOTE
        return Finding("device", mark, text, "install a torch build for the driver: https://pytorch.org/get-started")
    return Finding("device", Mark.FINE, f"{len(os.sched_getaffinity(0))} cores, no GPU")


def _memory() -> Finding:
    free = _available_bytes()
    if free < _MIN_MEMORY_BYTES:
        return Finding("memory", Mark.MEND, f"{size(free)} are free", "end what takes it: ps aux --sort=-rss | head")
    return Finding("memory", Mark.FINE, f"{size(free)} are free")


def _available_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _disk(folder: Path) -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        return Finding("disk", Mark.MEND, f"{there} cannot be written to", "--out DIR of your own")
    if free < _MIN_DISK_BYTES:
        return Finding("disk", Mark.MEND, f"{size(free)} are free in {there}", "--out DIR on another disk")
    return Finding("disk", Mark.FINE, f"{size(free)} are free in {there}")


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _MIN_FILES:
        more = min(hard, _GOOD_FILES) if hard > 0 else _GOOD_FILES
        return Finding("files", Mark.MEND, f"{soft} files may be open at a time", f"ulimit -n {more}")
    return Finding("files", Mark.FINE, f"{soft} files may be open at a time")


def _reads(path: str, line: str) -> bool:
    try:
        return line in Path(path).read_text().splitlines()
    except OSError:
        return False


def _says(*command: str) -> str:
    """What a command prints; nothing if it is not there, fails or hangs."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
