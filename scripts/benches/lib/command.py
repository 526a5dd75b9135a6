"""A bench's command line: what all have in common, and how a bench ends."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs/benchmarks"


class BenchError(Exception):
    """Something cannot be measured, or what must hold does not; the message says what."""


class Parser(argparse.ArgumentParser):
    """Options of a bench.

    Args:
        script: its name after ``scripts/bench``.
        doc: of the module.
        out: name of its files in docs/benchmarks, without suffix; empty for a bench without files.
    """

    def __init__(self, script: str, doc: str | None, out: str = "") -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"scripts/bench {script}", description=doc, formatter_class=form)
        if out:
            self.add_argument("--out", type=Path, default=DOCS / out, help="of the files, without suffix")

    def repeated(
        self, flag: str, kind: Callable[[str], object] = str, default: Sequence[object] = (), **more: Any
    ) -> None:
        """An option that can be given several times; the first one takes the place of the default."""
        self.add_argument(flag, type=kind, action=_Repeated, default=list(default), **more)

    def settings(self, text: str = "of all runs") -> None:
        """``--set KEY=VALUE``."""
        self.repeated("--set", metavar="KEY=VALUE", help=text)


class _Repeated(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        given = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [values] if given is self.default else [*given, values])


def set_words(settings: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """``--set KEY=VALUE`` for each, as ``decentral`` takes it."""
    stated = [f"{key}={value}" for key, value in settings.items()] if isinstance(settings, Mapping) else settings
    return [word for each in stated for word in ("--set", each)]


def enter(main: Callable[[], int | None]) -> NoReturn:
    """Run a bench; its result is the exit code, and an error that it expects a line of text."""
    try:
        sys.exit(main())
    except BenchError as err:
        sys.exit(f"error: {err}")
