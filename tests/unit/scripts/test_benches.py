"""Every entry point leads to its bench, and the pages in docs/benchmarks are what the benches make of the records."""

import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from scripts.benches import pipeline_page
from scripts.benches.lib.command import DOCS, ROOT

#: By entry point the module behind it.
MODULES = {
    path.name: found[1]
    for path in (ROOT / "scripts").iterdir()
    if path.is_file() and (found := re.search(r"/run\" (\w+) \"\$@\"\n$", path.read_text()))
}
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
OF_CHAOS = ("chaos", "chaos-gossip", "chaos-pipeline")
#: A bench of two pages.
STAGES = "chaos-stages"
WITH_PLACE = (
    "attacks",
    "chaos-sim",
    "codec-quality",
    "frontier",
    "gossip-quality",
    "muloco",
    "peers",
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


def test_every_bench_has_an_entry_point() -> None:
    benches = {path.stem for path in (ROOT / "scripts/benches").glob("*.py") if "\ndef main(" in path.read_text()}
    assert len(benches) > 20
    assert set(MODULES.values()) == benches


@pytest.mark.parametrize("script", sorted(MODULES))
def test_an_entry_point_says_what_its_bench_does(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--help"])
    with pytest.raises(SystemExit, match="0"):
        bench(script).main()
    assert f"usage: scripts/{script} " in capsys.readouterr().out


@pytest.mark.parametrize("name", [*OF_RECORD, *OF_CHAOS, STAGES, *WITH_PLACE])
def test_a_page_is_made_of_its_record(name: str, tmp_path: Path) -> None:
    page = DOCS / f"{name}.md"
    shutil.copy(page, tmp_path)  # What was written by hand is taken from it.
    record = json.loads(page.with_suffix(".json").read_text())
    place = (tmp_path / name,) if name in WITH_PLACE else ()
    script = "chaos" if name == STAGES else name if name.startswith("chaos") else f"bench-{name}"
    made = pipeline_page if name == "pipeline" else bench(script)
    assert made.page(*place, record) == page.read_text()
