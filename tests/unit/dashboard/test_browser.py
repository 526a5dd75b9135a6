"""The page in a real browser: what it shows, that it lives on, and that nobody's text becomes markup."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("axe_core_python")

from decentral.dashboard.page import report
from decentral.dashboard.place import listen
from decentral.dashboard.server import Server
from decentral.monitor.history import History
from tests.support.browser import CHROMIUM, DRIVER, Browser
from tests.support.runs import BEGAN, EVERY_S, HOSTILE, Kind, made

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"),
]
STEPS = 60
#: Lines of the map of links, and the table of the same.
LINKS = ("#map path", "#links tbody tr")
#: Whether the page is wider than the window.
OVERFLOWS = "return document.documentElement.scrollWidth > innerWidth"


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def serve() -> Iterator:
    servers: list[Server] = []

    def serving(history: History, place: str = "0") -> Server:
        servers.append(Server(history, listen(place)))
        return servers[-1]

    yield serving
    for server in servers:
        server.close()


def shows(browser: Browser, kind: Kind) -> None:
    """Wait until the page has drawn a run."""
    browser.wait(lambda: browser.text("#run").startswith("demo-"))
    if kind is not Kind.EMPTY:
        browser.wait(lambda: browser.run("return document.querySelectorAll('.uplot canvas').length") == 4)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("kind", Kind)
def test_every_kind_of_swarm_is_drawn_for_everybody_without_a_complaint(browser, serve, kind, width, dark):
    server = serve(made(kind, STEPS))
    browser.open(server.url, width=width, dark=dark)
    shows(browser, kind)
    assert browser.run("return document.querySelectorAll('#workers tbody tr').length") == len(
        made(kind, 1).state()["status"]["workers"]
    )
    assert not browser.run(OVERFLOWS)
    assert browser.barriers() == []
    assert browser.complaints() == []


def test_a_hostile_text_is_text(browser, serve):
    browser.open(serve(made(Kind.MANY, STEPS)).url)
    shows(browser, Kind.MANY)
    assert HOSTILE in browser.text("#workers")
    assert browser.run("return document.querySelectorAll('img, main script').length") == 0


def test_troubled_workers_come_first_and_columns_order(browser, serve):
    browser.open(serve(made(Kind.MANY, STEPS)).url)
    shows(browser, Kind.MANY)
    assert "bad" in browser.run("return document.querySelector('#workers tbody tr').className")
    for direction, least in (("descending", max), ("ascending", min)):
        browser.click("#workers thead th:nth-child(5) button")
        losses = browser.run(
            "return [...document.querySelectorAll('#workers tbody td:nth-child(5)')].map((cell) => cell.textContent)"
        )
        assert browser.run("return document.querySelector('#workers [aria-sort]').ariaSort") == direction
        assert float(losses[0]) == least(float(loss) for loss in losses)


def test_it_lives_on_through_news_a_reload_and_the_death_of_its_server(browser, serve):
    server = serve(history := made(Kind.TWO, STEPS))
    browser.open(server.url)
    shows(browser, Kind.TWO)
    last = history.state()["status"]
    assert browser.text("#progress-text") == f"round {last['totals']['round']} of 120"
    history.take({"time": BEGAN + EVERY_S * STEPS, "event": "repaired", "round": 3, "reason": "told later"}, "Qm-late")
    browser.wait(lambda: "told later" in browser.text("#events"))
    browser.run("location.reload()")
    shows(browser, Kind.TWO)
    browser.wait(lambda: "told later" in browser.text("#events"))
    server.close()
    browser.wait(lambda: "does not answer since" in browser.text("#notice"))
    assert browser.text("#health") == "no connection"
    assert browser.text("#run").startswith("demo-")
    again = serve(made(Kind.DEAD, STEPS), server.url.split(":")[-1].strip("/"))
    assert again.url == server.url
    browser.wait(lambda: browser.run("return document.querySelectorAll('#workers tbody tr').length") == 4)
    assert "told later" not in browser.text("#events")
    browser.complaints()


def test_a_keyboard_reaches_everything_and_charts_are_tables_too(browser, serve):
    browser.open(serve(made(Kind.TWO, STEPS)).url)
    shows(browser, Kind.TWO)
    browser.press("\ue004")
    assert browser.run("return document.activeElement.className") == "skip"
    named = "one.ariaLabel || one.labels?.length || one.getAttribute('aria-labelledby')"
    parts = "[...document.querySelectorAll('[role=img], [role=group], progress, select')]"
    assert browser.run(f"return {parts}.filter((one) => !({named})).length") == 0
    browser.click("#chart-loss summary")
    browser.wait(lambda: browser.run("return document.querySelectorAll('#chart-loss tbody tr').length") > 10)
    browser.click("input[value=step]")
    browser.wait(lambda: "step" in browser.text("#chart-loss tbody th"))
    browser.complaints()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_the_report_needs_no_server(browser, tmp_path, width, dark):
    path = tmp_path / "report.html"
    path.write_text(report(made(Kind.PIPELINE, STEPS).state(), "demo"), encoding="utf-8")
    browser.open(path.as_uri(), width=width, dark=dark)
    shows(browser, Kind.PIPELINE)
    assert "Stage 4" in browser.text("#stages")
    assert "has no holder" in browser.text("#stages .bad")
    assert browser.barriers() == []
    assert browser.complaints() == []


def test_links_are_drawn_and_listed_and_what_is_not_known_is_said(browser, serve):
    browser.open(serve(made(Kind.MANY, STEPS)).url)
    shows(browser, Kind.MANY)
    lines, rows = (browser.run(f"return document.querySelectorAll('{what}').length") for what in LINKS)
    assert lines == rows == int(browser.text("#links-note").split()[0]) > 64
    assert browser.run("return document.querySelectorAll('#map path.unknown').length") > 0
    assert "not known" in browser.text("#links tbody")
    history = made(Kind.TWO, STEPS)
    report = history._report
    silent = tuple(replace(row, links=()) for row in report.workers)
    history.sample(BEGAN + EVERY_S * STEPS, replace(report, workers=silent))
    browser.open(serve(history).url)
    shows(browser, Kind.TWO)
    assert browser.text("#links-note").startswith("not known")
    assert browser.complaints() == []
