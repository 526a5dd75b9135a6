import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="the extra decentral[metrics] is not installed")

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from decentral.errors import ConfigError
from decentral.metrics.endpoint import Endpoint
from decentral.monitor import metrics
from tests.unit.metrics.made import OWN, told

DOCS = Path(__file__).parents[3] / "docs"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


@pytest.fixture(scope="module")
def served() -> Iterator[Endpoint]:
    endpoint = Endpoint("127.0.0.1", 0, OWN, CLOCK)
    yield endpoint
    endpoint.close()


@pytest.fixture
def endpoint(served: Endpoint) -> Endpoint:
    CLOCK.now = 0.0
    served.take(told(num_stages=2))
    return served


def get(endpoint: Endpoint, accept: str = "") -> str:
    with urllib.request.urlopen(urllib.request.Request(endpoint.url, headers={"Accept": accept}), timeout=60) as reply:
        return reply.read().decode()


def samples(families: Iterable[Any]) -> dict[Any, float]:
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_both_formats_parse_to_the_same_samples_with_few_labels(endpoint):
    text = samples(parse_text(get(endpoint)))
    assert text == samples(parse_openmetrics(get(endpoint, OPENMETRICS)))
    run = ("run", "demo-1a2b")
    assert text["decentral_worker_tokens_total", (run, ("worker", "OwnOwn"))] == 5000
    assert text["decentral_totals_dp_ratio", (run,)] == 2.0
    assert text["decentral_workers", (run, ("state", "lost"))] == 1
    assert text["decentral_stage_recoveries", (run, ("stage", "2"))] == 0
    assert text["decentral_health", (("health", "degraded"), run)] == 1
    assert {label for _, labels in text for label, _ in labels} <= {
        *("run", "worker", "stage", "state", "health", "method", "codec", "version")
    }
    assert {dict(labels)["worker"] for _, labels in text if "worker" in dict(labels)} == {"OwnOwn"}


def test_what_is_not_known_is_left_out_and_before_the_first_report_all_is(endpoint):
    endpoint.take(told())
    names = {family.name for family in parse_text(get(endpoint))}
    assert "decentral_totals_tokens" in names
    assert not any(name.startswith("decentral_stage") for name in names)
    fresh = Endpoint("127.0.0.1", 0, OWN)
    assert get(fresh) == ""
    fresh.close()


def test_a_report_that_grows_old_is_no_answer(endpoint):
    CLOCK.now = 31.0
    with pytest.raises(urllib.error.HTTPError, match="500"):
        get(endpoint)


def test_a_port_that_is_taken_is_refused_with_a_way_out(endpoint):
    port = int(endpoint.url.split(":")[2].partition("/")[0])
    with pytest.raises(ConfigError, match=f"cannot be served at 127.0.0.1:{port}: Address already in use") as refused:
        Endpoint("127.0.0.1", port, OWN)
    assert "--metrics 0" in refused.value.hint


def exposed(endpoint: Endpoint) -> dict[str, str]:
    """Every sample's name that there can be, with the help of its metric."""
    families = list(parse_text(get(endpoint)))
    return {sample.name: family.documentation for family in families for sample in family.samples}


def test_the_page_lists_every_metric_with_its_meaning_and_no_other(endpoint):
    rows = re.findall(r"^\| `(decentral_\w+)` \| (.*?) \| (.+) \|$", (DOCS / "metrics.md").read_text(), re.MULTILINE)
    assert {name: meaning for name, _, meaning in rows} == exposed(endpoint)
    sections = {"run": "`run`", "totals": "`totals`", "worker": "`workers[]`", "stage": "`stages[]`"}
    fields = {
        metrics.name(section, metric) + "_total" * metric.counts: f"{sections[section]}.`{metric.field}`"
        for section in sections
        for metric in getattr(metrics, section.upper())
    }
    assert fields.items() <= {name: field for name, field, _ in rows}.items()


def test_the_board_asks_for_nothing_that_does_not_exist(endpoint):
    board = json.loads((DOCS / "grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    variables = [each["definition"] for each in board["templating"]["list"] if each["type"] == "query"]
    asked = {name for query in (*queries, *variables) for name in re.findall(r"decentral_\w+", query)}
    assert len(queries) > 10
    assert asked - set(exposed(endpoint)) == set()
    labels = {label for query in queries for label in re.findall(r"(\w+)=~?\"", query)}
    assert labels <= {"run", "worker", "stage", "state", "health", "instance"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_nothing_to_find_fault_with(endpoint):
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=get(endpoint), capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")
