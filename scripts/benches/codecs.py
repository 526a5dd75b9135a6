"""How fast codecs are on one core, what they take, and how hivemind's own 8-bit codecs do beside them.

    scripts/bench codecs [--repeats 5] [--values 2**24] [--core N]

All codecs once, then all again: --repeats rounds. Every encode and every decode stands between two plain copies of as
many values (``dst.copy_(src)`` of torch), which show what the machine gave at that moment; the copies have buffers of
their own, so that what is measured has left the cache. Everything runs on one core with one thread of torch; the
threads in which hivemind computes quantiles share that core.

Prints and writes docs/benchmarks/codecs.json, codecs.md and codecs.png. Exit code 0: every target is met; 1: one is
not. Needs Linux: memory is read from /proc in forked children.
"""

import ctypes
import importlib.util
import json
import math
import os
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hivemind.compression import BlockwiseQuantization, Quantile8BitQuantization, Uniform8BitQuantization, quantization
from hivemind.compression.base import CompressionInfo
from torch import Tensor

from decentral.codecs.codec import codec_names, make_codec
from scripts.benches.lib.command import BenchError, Parser, enter
from scripts.benches.lib.plots import figure
from scripts.benches.lib.report import Record, load_average, signature, stamp, write
from scripts.benches.lib.stats import between, spread
from scripts.benches.lib.tables import row, table

SCRIPT = "codecs"
#: Standard deviation of the values: that of a pseudo-gradient.
STD = 1e-3
#: Values that everything is called on once before it is measured.
WARM_UP = 4096
#: Million values a second that a codec must reach in both directions.
TARGETS = {"int8-b128": 400, "int4-b128": 250, "e3m0-b128": 250}
#: ``FASTER[0]`` must be ``FASTER[2]`` times as fast as ``FASTER[1]``, in both directions.
FASTER = ("int8-b128", "hivemind Uniform8BitQuantization", 5.0)
DIRECTIONS = ("encode", "decode")
#: glibc: allocations from this size on are returned to the system at once (M_MMAP_THRESHOLD of mallopt).
_M_MMAP_THRESHOLD, _THRESHOLD_BYTES = -3, 1 << 16


@dataclass(frozen=True)
class Subject:
    """Something with both directions."""

    name: str
    encode: Callable[[Tensor], Any]
    decode: Callable[[Any, int], Tensor]
    nbytes: Callable[[Any], int]
    """Size of what ``encode`` returns."""


def subjects(names: tuple[str, ...]) -> list[Subject]:
    """Our codecs called ``names``, then hivemind's."""
    ours = [Subject(name, codec.encode, codec.decode, len) for name in names for codec in (make_codec(name),)]
    quantization.np = _Numpy()
    warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
    theirs = [Uniform8BitQuantization(), Quantile8BitQuantization()]
    if importlib.util.find_spec("bitsandbytes"):
        theirs.append(BlockwiseQuantization())
    return [*ours, *(_of_hivemind(compression) for compression in theirs)]


class _Numpy:
    """numpy as hivemind's quantization takes it to be: of a buffer of one value it makes a number by ``int()``.

    numpy refuses that of an array since 2.4, and with it every ``extract`` of hivemind 1.1.12 fails.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def frombuffer(*args: Any, **named: Any) -> Any:
        found = np.frombuffer(*args, **named)
        return found[0] if named.get("count") == 1 else found


def _of_hivemind(compression: Any) -> Subject:
    return Subject(
        f"hivemind {type(compression).__name__}",
        lambda x_N: compression.compress(x_N, CompressionInfo.from_tensor(x_N)),
        lambda message, numel: compression.extract(message),
        lambda message: len(message.buffer),
    )


def examine(subject: Subject, x_N: Tensor) -> Record:
    """Bytes, relative error, and memory beyond the result, in a forked child: this process's memory stays as it is."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.write(write, json.dumps(_examine(subject, x_N)).encode())
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    with open(read, "rb") as pipe:
        text = pipe.read()
    if os.waitpid(pid, 0)[1]:
        raise BenchError(f"{subject.name} cannot be measured, see above")
    record: Record = json.loads(text)
    return record


def _examine(subject: Subject, x_N: Tensor) -> Record:
    # Else what encode has freed would serve decode, and never be seen.
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)
    subject.decode(subject.encode(x_N[:WARM_UP]), WARM_UP)
    payload, encode_bytes = _peak(lambda: subject.encode(x_N))
    decoded_N, decode_bytes = _peak(lambda: subject.decode(payload, x_N.numel()))
    nbytes = subject.nbytes(payload)
    error = torch.linalg.vector_norm(decoded_N.sub_(x_N)) / torch.linalg.vector_norm(x_N)
    return {
        "nbytes": nbytes,
        "error": float(error),
        "encode_extra_bytes": max(0, encode_bytes - nbytes),
        "decode_extra_bytes": max(0, decode_bytes - 4 * x_N.numel()),
    }


def _peak(call: Callable[[], Any]) -> tuple[Any, int]:
    """What ``call`` returns, and by how many bytes this process was larger at its largest."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status_bytes("VmRSS")
    result = call()
    return result, _status_bytes("VmHWM") - before


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def rounds(listed: list[Subject], x_N: Tensor, repeats: int) -> Iterator[tuple[str, Record]]:
    """Seconds of each subject in each round: the direction, and the mean of the copies before and after it."""
    source_N, target_N = torch.zeros_like(x_N).fill_(1.0), torch.zeros_like(x_N).fill_(1.0)

    def copy_s() -> float:
        return _timed(lambda: target_N.copy_(source_N))[1]

    for _ in range(repeats):
        for subject in listed:
            first_s = copy_s()
            payload, encode_s = _timed(lambda: subject.encode(x_N))  # noqa: B023  called at once
            second_s = copy_s()
            _, decode_s = _timed(lambda: subject.decode(payload, x_N.numel()))  # noqa: B023
            third_s = copy_s()
            yield (
                subject.name,
                {
                    "encode_s": encode_s,
                    "encode_copy_s": (first_s + second_s) / 2,
                    "decode_s": decode_s,
                    "decode_copy_s": (second_s + third_s) / 2,
                },
            )


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Call twice and time the second: the memory of a swarm's later rounds is not taken from the system again."""
    call()
    began = time.perf_counter()
    result = call()
    return result, time.perf_counter() - began


def rates(case: Record, direction: str, numel: int) -> list[float]:
    """Million values a second in every round."""
    return [numel / each[f"{direction}_s"] / 1e6 for each in case["rounds"]]


def copy_rates(cases: dict[str, Record], numel: int) -> list[float]:
    """The same of every pair of copies."""
    return [
        numel / each[f"{way}_copy_s"] / 1e6 for case in cases.values() for each in case["rounds"] for way in DIRECTIONS
    ]


def to_copy(case: Record, direction: str) -> float:
    """How fast in proportion to the copies around it; median of the rounds."""
    ratios: list[float] = [each[f"{direction}_copy_s"] / each[f"{direction}_s"] for each in case["rounds"]]
    return statistics.median(ratios)


@dataclass(frozen=True)
class Verdict:
    """A target and what came out."""

    text: str
    required: float
    measured: float | None
    """``None`` if there is no such codec."""

    @property
    def met(self) -> bool:
        """Whether the median is there."""
        return self.measured is not None and self.measured >= self.required

    def cells(self) -> list[str]:
        """A row of the table."""
        measured = "no such codec" if self.measured is None else f"{self.measured:.1f}"
        return [self.text, f"{self.required:g}", measured, "met" if self.met else "open"]


def verdicts(report: Record) -> list[Verdict]:
    """Every target in both directions, by medians over the rounds."""
    cases, numel = report["cases"], report["values"]
    found = []
    for name, required in TARGETS.items():
        for way in DIRECTIONS:
            median = statistics.median(rates(cases[name], way, numel)) if name in cases else None
            found.append(Verdict(f"{name}, {way} (M values/s)", required, median))
    fast, slow, factor = FASTER
    for way in DIRECTIONS:
        ours, theirs = (rates(cases[name], way, numel) for name in (fast, slow))
        ratio = statistics.median(our / their for our, their in zip(ours, theirs, strict=True))
        found.append(Verdict(f"{fast} to {slow}, {way}", factor, ratio))
    return found


def _cells(name: str, case: Record, numel: int) -> list[str]:
    shown = f"`{name}`" if name in codec_names() else name
    cells = [shown, f"{case['nbytes']:,}", f"{8 * case['nbytes'] / numel:.3f}", f"{case['error']:.1e}"]
    for way in DIRECTIONS:
        cells += [spread(rates(case, way, numel), ".0f", statistics.median), f"{to_copy(case, way):.2f}"]
    return [*cells, *(f"{case[f'{way}_extra_bytes'] / 1e6:.1f}" for way in DIRECTIONS)]


_COLUMNS = "codec | bytes: | bits: | error: | encode: | to copy: | decode: | to copy: | encode, MB: | decode, MB:"


def page(report: Record) -> str:
    """The report for people."""
    numel, cases = report["values"], report["cases"]
    copies = copy_rates(cases, numel)
    blockwise = "" if report["bitsandbytes"] else "`BlockwiseQuantization` is left out: it needs bitsandbytes."
    return f"""# Codecs on one core

Written by `scripts/bench codecs`; the raw record is `codecs.json`. {numel:,} float32 values ({4 * numel / 1e6:.1f} MB):
normal noise of standard deviation {STD:g}, as in a pseudo-gradient. One core, one thread, every codec once a round;
rounds: {report["repeats"]}. Every call stands between two plain copies of as many values (`dst.copy_(src)`), which
have buffers of their own, so that nothing is in the cache. Of two calls in a row the second counts: as in the later
rounds of a swarm, memory was taken from the system before. The machine is shared, and everything here varies with it:
the copies ran at {statistics.median(copies):.0f} M values/s ({between(copies, ".0f")}).

* **bytes**, **bits**: of the payload, exactly; bits per value.
* **error**: norm of the error over the norm of the vector, in one encoding.
* **encode**, **decode**: million values a second, median (minimum to maximum) of the rounds; **to copy**: the same in
  proportion to the copies right before and after, median of the rounds.
* **MB**: memory at its peak beyond the input and the result, by the resident size of a process forked for it; what is
  below a few tenths cannot be told from 0.

{table(_COLUMNS, [_cells(name, case, numel) for name, case in cases.items()])}

hivemind's codecs run in the same process on the same core; `compress` and `extract` were timed, without the conversion
of the message to bytes. Quantiles are computed in a pool of threads, which share the one core here. `extract` of
hivemind 1.1.12 does not run with numpy 2.4 or later (`int()` of an array of one); the script puts that one call right.
{blockwise}

![speed](codecs.png)

## Targets

By the medians over the rounds, on this machine at these moments; compare with the copies' speed above.

{table("target | at least: | measured: |", [verdict.cells() for verdict in verdicts(report)])}

{signature(report)}"""


def plot(report: Record, path: Path) -> None:
    """Bars of the medians, whiskers to minimum and maximum."""
    numel, cases = report["values"], report["cases"]
    with figure(path, 8, 1.2 + 0.34 * len(cases)) as [axes]:
        for offset, way in ((-0.2, "encode"), (0.2, "decode")):
            found = [rates(case, way, numel) for case in cases.values()]
            medians = [statistics.median(each) for each in found]
            below = [median - min(each) for median, each in zip(medians, found, strict=True)]
            above = [max(each) - median for median, each in zip(medians, found, strict=True)]
            places = [place + offset for place in range(len(cases))]
            axes.barh(places, medians, height=0.38, xerr=[below, above], label=way, error_kw={"linewidth": 0.8})
        copied = statistics.median(copy_rates(cases, numel))
        axes.axvline(copied, color="black", linewidth=0.8, linestyle="--", label="copy")
        labels = [f"{name} ({8 * case['nbytes'] / numel:.2f} bits)" for name, case in cases.items()]
        axes.set_yticks(range(len(cases)), labels, fontsize="small")
        axes.invert_yaxis()
        axes.set_xlabel("million values a second on one core")
        axes.grid(axis="x", alpha=0.3)
        axes.legend(fontsize="small")


def _machine() -> str:
    """What a stamp does not say of it."""
    cache = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    size = f", last cache {cache.read_text().strip()}" if cache.exists() else ""
    return f"{size}, load {load_average()} at the end"


def main() -> int:
    """Measure, print, write; 1 if a target is missed."""
    parser = Parser(SCRIPT, __doc__, "codecs")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--values", type=_number, default=2**24, help="such as 2**24")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="to run on")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(1)
    x_N = torch.randn(options.values, generator=torch.Generator().manual_seed(0)).mul_(STD)
    listed = subjects(codec_names())
    # Before anything was timed: no thread has been started yet, and no freed memory lies about.
    cases = {subject.name: examine(subject, x_N) | {"rounds": []} for subject in listed}
    for subject in listed:
        subject.decode(subject.encode(x_N[:WARM_UP]), WARM_UP)
    for name, seconds in rounds(listed, x_N, options.repeats):
        cases[name]["rounds"].append(seconds)
        speeds = ", ".join(f"{way} {options.values / seconds[f'{way}_s'] / 1e6:.0f}" for way in DIRECTIONS)
        print(f"{name}: {speeds} M values/s", flush=True)
    report = {
        "values": options.values,
        "repeats": options.repeats,
        "bitsandbytes": bool(importlib.util.find_spec("bitsandbytes")),
        "cases": dict(sorted(cases.items(), key=lambda item: -item[1]["nbytes"])),
        **stamp(SCRIPT),
    }
    report["machine"] += _machine()
    write(options.out, report, page(report))
    plot(report, options.out)
    found = verdicts(report)
    print("\n".join(row(*verdict.cells()) for verdict in found))
    return int(not all(verdict.met for verdict in found))


def _number(text: str) -> int:
    """``16777216`` or ``2**24``."""
    base, _, power = text.partition("**")
    return int(math.pow(int(base), int(power or 1)))


if __name__ == "__main__":
    enter(main)
