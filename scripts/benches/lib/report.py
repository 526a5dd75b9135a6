"""What a bench leaves: a record as JSON and a page of Markdown, with where, when and from what they were made."""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scripts.benches.lib.command import ROOT

Record = dict[str, Any]

_PACKAGES = ("torch", "numpy", "hivemind")


def stamp(script: str) -> Record:
    """Where, when, from which code and by which command something is measured.

    Args:
        script: the bench's name after ``scripts/bench``.
    """
    packages = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    return {
        "command": shlex.join(["scripts/bench", script, *sys.argv[1:]]),
        "machine": f"{_processor()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "versions": ", ".join([f"Python {platform.python_version()}", *packages]),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    """The processor's name, if the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """What is checked out; with a plus if files differ from it, empty outside of a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!docs")
    return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")


def load_average() -> float:
    """Of the last minute."""
    return round(os.getloadavg()[0], 1)


def signature(record: Record) -> str:
    """The end of a page made of one record."""
    return f"{places([record])[0]}\n\n    {record['command']}\n"


def places(records: Iterable[Record]) -> list[str]:
    """Machine, versions and date of records, each once."""
    return list(dict.fromkeys(f"{each['machine']}; {each['versions']}; {each['date']}" for each in records))


def read(out: Path, default: Any) -> Any:
    """The record so far; ``default`` if there is none."""
    path = out.with_suffix(".json")
    return json.loads(path.read_text()) if path.exists() else default


def write(out: Path, record: Any, page: str) -> None:
    """Record and page, each in the place of the old one at once.

    Args:
        out: path without suffix.
        record: a dictionary, or a list of records.
        page: Markdown.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".json", _lines(record) + "\n"), (".md", page)):
        path = out.with_suffix(suffix)
        part = path.with_name(f"{path.name}.part")
        part.write_text(text)
        os.replace(part, path)


def kept(out: Path, title: str = "Findings") -> str:
    """A section of a page that is written by hand and stays; empty below its title if there is none yet."""
    path, head = out.with_suffix(".md"), f"## {title}\n"
    _, _, text = path.read_text().partition(head) if path.exists() else ("", "", "")
    own = text.partition("\n## ")[0].strip()
    return f"{head}\n{own}\n"


def _lines(value: Any, depth: int = 2) -> str:
    """JSON with a line for each entry of the outermost list, or of two levels of dictionaries."""
    if value and depth and isinstance(value, dict):
        entries = (f"{json.dumps(str(key))}: {_lines(entry, depth - 1)}" for key, entry in value.items())
        return "{\n" + ",\n".join(entries) + "\n}"
    if value and depth and isinstance(value, list) and isinstance(value[0], dict):
        return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
    return json.dumps(value)
