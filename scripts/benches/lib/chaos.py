"""What benches have in common in which workers are killed and stopped, and something must hold all the same."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.benches.lib.command import BenchError, Parser
from scripts.benches.lib.report import Record, load_average, stamp, write


def chaos_options(parser: Parser) -> argparse.Namespace:
    """Parse what runs of drawn faults have in common, and what ``parser`` has."""
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of what is drawn; default: by the clock")
    folder_option(parser)
    options = parser.parse_args()
    print(f"seed {options.seed}")
    return options


def folder_option(parser: Parser) -> None:
    """``--folder``."""
    parser.add_argument("--folder", type=Path, help="an existing folder to keep the workers' files in")


@contextmanager
def violations_in(report: Record, where: str = "") -> Iterator[None]:
    """What does not hold in the block is written down, with what did not while that was handled."""
    try:
        yield
    except BenchError as err:
        found: BaseException | None = err
        while isinstance(found, BenchError):
            report["violations"].append(f"{where}{found}")
            found = found.__context__


def run_chaos(
    script: str,
    options: argparse.Namespace,
    report: Record,
    play: Callable[[Path], None],
    page: Callable[[Record], str],
) -> int:
    """Play, write, and say by the exit code whether all held.

    Args:
        script: the bench's name.
        options: with ``out`` and ``folder``.
        report: begun; gets ``violations``, and from ``play`` what happens as it happens.
        play: told the folder.
        page: made of the report.
    """
    report |= {"violations": [], **stamp(script)}
    report["machine"] += f", load {load_average()} at the start"
    with tempfile.TemporaryDirectory(prefix="decentral-chaos-") as temporary:
        play((options.folder or Path(temporary)).resolve())
    write(options.out, report, page(report))
    for text in report["violations"]:
        print(f"violation: {text}", file=sys.stderr)
    return int(bool(report["violations"]))


def verdict(report: Record, otherwise: str) -> str:
    """The violations as a list of the page."""
    found = "\n".join(f"* **violation**: {text.splitlines()[0]}" for text in report["violations"])
    return found or f"* No violation: {otherwise}"
