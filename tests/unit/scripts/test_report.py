"""Records and pages are written whole, and what a person wrote into a page stays."""

import json
from pathlib import Path

from scripts.benches.lib.report import Record, kept, places, read, signature, stamp, write

STAMPS = [{"machine": name, "versions": "v", "date": "d", "command": "c"} for name in ("one", "two", "one")]


def test_what_was_written_is_read_again_whatever_its_shape(tmp_path: Path) -> None:
    runs = [{"seed": 0, "losses": [1.5, 2.5]}, {"seed": 1, "losses": []}]
    for number, record in enumerate([runs, {"runs": runs, "cases": {"a": runs[0]}, "none": {}, "at": None}, []]):
        write(tmp_path / str(number), record, "page")
        assert read(tmp_path / str(number), None) == record
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json"] * 3 + [".md"] * 3
    assert read(tmp_path / "missing", []) == []


def test_each_run_has_a_line(tmp_path: Path) -> None:
    write(tmp_path / "out", {"runs": [{"seed": 0}, {"seed": 1}], "date": "d"}, "")
    lines = (tmp_path / "out.json").read_text().splitlines()
    assert [json.loads(line.rstrip(",")) for line in lines if "seed" in line] == [{"seed": 0}, {"seed": 1}]


def test_a_section_written_by_hand_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert kept(out) == "## Findings\n\n\n"
    (tmp_path / "out.md").write_text("# Title\n\n## Findings\n\nIt holds.\n\n* Twice.\n\n## Table\n\nNumbers.\n")
    assert kept(out) == "## Findings\n\nIt holds.\n\n* Twice.\n"
    assert kept(out, "Table") == "## Table\n\nNumbers.\n"


def test_places_are_named_once_and_a_page_ends_with_its_command() -> None:
    assert places(STAMPS) == ["one; v; d", "two; v; d"]
    assert signature(STAMPS[0]) == "one; v; d\n\n    c\n"


def test_a_stamp_says_where_and_from_what() -> None:
    found: Record = stamp("none")
    assert found["command"].startswith("scripts/bench none")
    assert "Python" in found["versions"]
    assert "torch" in found["versions"]
    assert places([found])
