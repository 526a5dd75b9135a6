"""Every entry point leads to its bench, and the pages in docs/benchmarks are what the benches make of the records."""

import importlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts.benches import pipeline_page
from scripts.benches.lib.command import DOCS, ROOT

#: By name the module behind it.
MODULES = {
    path.stem.replace("_", "-"): path.stem
    for path in (ROOT / "scripts/benches").glob("*.py")
    if "\ndef main(" in path.read_text()
}
#: The page of a bench that is called otherwise.
PAGES = {"async": "asynchronous", "chaos-stages": "chaos"}
#: Benches whose page is made of the record alone, and those that want to know as well where it will be.
OF_RECORD = (
    "async",
    "bounds",
    "checkpoint",
    "churn",
    "codecs",
    "download",
    "goodput",
    "gossip",
    "hf-overhead",
    "machine",
    "overhead",
    "stragglers",
    "utilisation-model",
    "wire",
)
OF_CHAOS = ("chaos", "chaos-gossip", "chaos-pipeline", "chaos-stages")
WITH_PLACE = (
    "attacks",
    "chaos-sim",
    "codec-quality",
    "frontier",
    "gossip-quality",
    "muloco",
    "peers",
    "pipeline",
    "quickstart",
    "recovery",
    "streaming-quality",
    "utilisation",
)

#: Of hivemind, when all of it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


def bench(script: str) -> Any:
    return importlib.import_module(f"scripts.benches.{MODULES[script]}")


def test_a_bench_is_called_by_its_name() -> None:
    asked = subprocess.run([ROOT / "scripts/bench"], capture_output=True, text=True, timeout=60)
    assert asked.returncode == 2
    _, _, named = asked.stderr.partition("NAME one of: all ")
    assert named.split() == sorted(MODULES)
    assert len(MODULES) > 20
    assert subprocess.run([ROOT / "scripts/bench", "none"], capture_output=True, timeout=60).returncode == 2


@pytest.mark.parametrize("script", sorted(MODULES))
def test_an_entry_point_says_what_its_bench_does(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--help"])
    with pytest.raises(SystemExit, match="0"):
        bench(script).main()
    assert f"usage: scripts/bench {script} " in capsys.readouterr().out


@pytest.mark.parametrize("name", [*OF_RECORD, *OF_CHAOS, *WITH_PLACE])
def test_a_page_is_made_of_its_record(name: str, tmp_path: Path) -> None:
    page = DOCS / f"{name}.md"
    shutil.copy(page, tmp_path)  # What was written by hand is taken from it.
    record = json.loads(page.with_suffix(".json").read_text())
    place = (tmp_path / name,) if name in WITH_PLACE else ()
    made = pipeline_page if name == "pipeline" else bench(PAGES.get(name, name))
    assert made.page(*place, record) == page.read_text()
