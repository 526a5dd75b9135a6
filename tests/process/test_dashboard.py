"""The page of real workers: beside one of them, from outside, after one has died, and as the report at the end."""

import json
import re
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from tests.process.command import P, Process, WorkerProcess, founding, processes_of, wait_for
from tests.process.test_resume import Resumed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SLOWLY_S = 180.0


def state_at(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}api/state", timeout=SLOWLY_S) as answer:
        state: dict[str, Any] = json.load(answer)
    return state


def lost_at(url: str) -> list[str]:
    """Whom its events call lost."""
    return [line["by"] for line in state_at(url)["events"] if line.get("state") == "lost"]


def links_at(url: str) -> set[tuple[str, str]]:
    """Who says of whom how far away it is, and that both have sent something."""
    rows = state_at(url)["status"]["workers"]
    links = [(row["id"], link) for row in rows for link in row["links"]]
    return {(by, link["id"]) for by, link in links if link["round_trip_s"] and link["sent_bytes"]}


def report_of(folder: Path) -> dict[str, Any]:
    """What the page at the end of a worker shows."""
    text = (folder / "report.html").read_text()
    state: dict[str, Any] = json.loads(re.search(r'id="state">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    return state


def url_in(text: str) -> str:
    found = re.search(r"http://127\.0\.0\.1:\d+/", text)
    return found[0] if found else ""


def test_a_page_beside_a_worker_and_one_from_outside(start: Callable[[P], P], tmp_path: Path) -> None:
    hurry = tmp_path / "hurry"
    founder = start(WorkerProcess(tmp_path / "a", *founding(hurry, step_s=0.1, rounds=400), "--dashboard", "0"))
    other = start(WorkerProcess(tmp_path / "b", "--join", founder.address, "--checkpoint-every", "5s"))
    beside = wait_for(lambda: url_in(founder.stderr), "the page's address", SLOWLY_S)
    dashboard = start(Process(tmp_path / "page", "dashboard", founder.address, "--at", "0"))
    outside = wait_for(lambda: url_in(dashboard.stdout), "the other page's address", SLOWLY_S)
    for url in (beside, outside):
        wait_for(lambda url=url: len(state_at(url)["losses"]) == 2, f"the losses of both at {url}", SLOWLY_S)
        wait_for(lambda url=url: any(row["mixed"] for row in state_at(url)["rounds"]), "a round", SLOWLY_S)
    assert (state_at(beside)["has_journal"], state_at(outside)["has_journal"]) == (True, False)
    for url in (beside, outside):
        wait_for(lambda url=url: len(links_at(url)) == 2, f"the link between them from both sides at {url}", SLOWLY_S)
    wait_for(lambda: other.events("saved"), "a checkpoint", SLOWLY_S)
    wait_for(lambda: "saved" in {line["event"] for line in state_at(outside)["events"]}, "that it is seen", SLOWLY_S)

    other.signal(signal.SIGKILL)
    for url in (beside, outside):
        wait_for(lambda url=url: lost_at(url) == [other.peer[-6:]], f"that one is missed at {url}", SLOWLY_S)

    back = start(Resumed(other.folder))
    wait_for(lambda: len(other.events("resumed")) == 1, "the one that was killed being back", SLOWLY_S)
    hurry.touch()
    assert [founder.code(), back.code()] == [0, 0]
    lives = report_of(other.folder)
    assert [line["event"] for line in lives["events"] if line["by"] == other.peer[-6:]].count("started") == 2
    assert lives["samples"]["time"][0] < other.events("resumed")[0]["time"] < lives["samples"]["time"][-1]
    state = report_of(founder.folder)
    assert state["status"]["totals"]["round"] == 400
    assert [line["event"] for line in state["events"]].count("stopped") == 1
    before = state_at(outside)
    assert before["now"] - before["time"] < SLOWLY_S
    dashboard.signal(signal.SIGINT)
    assert dashboard.code() == 0
    assert processes_of(tmp_path) == []
