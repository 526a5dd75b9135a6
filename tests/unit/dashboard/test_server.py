"""The page over real sockets of loopback: who gets it, what comes with it, and that nothing in it can be changed."""

import http.client
import json
import re
import socket
from collections.abc import Iterator

import pytest

pytest.importorskip("uvicorn")

from decentral.dashboard import place as places
from decentral.dashboard.page import SCRIPTS, STYLES, live_page, read, report
from decentral.dashboard.place import Place, check, listen
from decentral.dashboard.server import Server
from decentral.errors import ConfigError, PortTakenError
from decentral.monitor.history import History
from tests.support.runs import Kind, made

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def history() -> History:
    return made(Kind.TWO, steps=12)


@pytest.fixture(scope="module")
def server(history) -> Iterator[Server]:
    """As on a host that others reach."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(history, Place(listener, "127.0.0.1", listener.getsockname()[1], "s3cret"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def local(history) -> Iterator[Server]:
    server = Server(history, listen("0"))
    yield server
    server.close()


def get(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, str]:
    port = int(re.search(r":(\d+)/", server.url)[1])  # type: ignore[index]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers={"Connection": "close", **headers})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


def test_the_page_asks_nobody_but_its_own_place(local):
    answer, body = get(local, "/")
    assert answer.status == 200
    assert re.findall(r'(?:src|href)="(?!data:|#)([^"]+)"', body) == [f"static/{name}" for name in (*STYLES, *SCRIPTS)]
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    for name in (*STYLES, *SCRIPTS):
        answer, text = get(local, f"/static/{name}")
        assert (answer.status, answer.headers["X-Content-Type-Options"]) == (200, "nosniff")
        assert not re.search(r"https?://(?!github\.com/leeoniya/uPlot|www\.w3\.org/)", text)


def test_the_state_is_the_status_and_what_is_new_since(local, history):
    _, body = get(local, "/api/state")
    state = json.loads(body)
    assert state["status"] == json.loads(json.dumps(history.state()["status"]))
    assert len(state["samples"]["time"]) == 12
    _, body = get(local, f"/api/state?since={state['seq']}")
    assert json.loads(body)["samples"]["time"] == []
    assert json.loads(get(local, "/api/state?since=-1x")[1])["samples"] == state["samples"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed(local, method):
    assert get(local, "/api/state", method)[0].status == 405


@pytest.mark.parametrize(
    "path", ["/static/../place.py", "/static/%2e%2e%2fplace.py", "/static/page.html", "/etc/passwd"]
)
def test_no_other_file_is_given(local, path):
    assert get(local, path)[0].status == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8471", "127.0.0.1.evil.example", "", "[::1"])
def test_a_name_of_a_strangers_gets_nothing(local, host):
    answer, body = get(local, "/api/state", Host=host)
    assert (answer.status, "status" in body) == (421, False)


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8471", "LOCALHOST"])
def test_this_machine_by_any_of_its_names_gets_it(local, host):
    assert get(local, "/api/state", Host=host)[0].status == 200


@pytest.mark.parametrize(
    "path", ["/", "/api/state", "/static/page.js", "/api/state?token=wrong", "/api/state?token=%C3%A9"]
)
def test_with_a_token_nobody_gets_anything_without_it(server, path):
    answer, body = get(server, path)
    assert (answer.status, "s3cret" in body) == (403, False)


def test_the_address_with_its_token_opens_everything(server):
    assert server.url.endswith("/?token=s3cret")
    answer, body = get(server, "/?token=s3cret")
    assert answer.status == 200
    files = re.findall(r'"(static/[^"]+)"', body)
    assert len(files) == len((*STYLES, *SCRIPTS))
    assert {get(server, f"/{file}")[0].status for file in (*files, "api/state?token=s3cret")} == {200}


def test_only_a_place_that_others_reach_has_a_token(monkeypatch):
    for text, has_token in (("0", False), ("localhost:0", False), ("0.0.0.0:0", True)):
        place = listen(text)
        place.listener.close()
        assert bool(place.token) is has_token
        assert (f"?token={place.token}" in place.url) is has_token


@pytest.mark.parametrize("text", ["", "here", "1.2.3.4:", "70000", "::", "localhost:http"])
def test_what_is_no_place_is_refused(text):
    with pytest.raises(ConfigError, match="no place"):
        listen(text)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(ConfigError, match="192\\.0\\.2\\.1"):
        listen("192.0.2.1:0")


def test_a_port_that_is_taken_is_an_error_unless_nobody_named_it(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTakenError, match=str(port)):
            listen(str(port))
        monkeypatch.setattr(places, "DEFAULT_PORT", port)
        place = listen("auto")
        place.listener.close()
        assert place.port not in (0, port)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(places.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        check("auto")
    assert caught.value.hint == "pip install 'decentral[dashboard]'"


def test_texts_of_workers_are_text_and_no_markup_in_the_report():
    history = History()
    history.take({"time": 1.0, "event": "repaired", "reason": HOSTILE, "round": 1}, "QmA")
    text = report(history.state(), HOSTILE)
    assert HOSTILE not in text
    assert text.count("<title>") == 1
    data = re.search(r'<script type="application/json" id="state">(.*?)</script>', text, re.DOTALL)
    assert json.loads(data[1])["events"][0]["reason"] == HOSTILE  # type: ignore[index]


def test_no_script_makes_markup_of_text():
    for name in SCRIPTS[1:]:
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", read(name)), name


def test_the_page_is_light():
    assert sum(len(read(name).encode()) for name in (*STYLES, *SCRIPTS)) + len(live_page("").encode()) < 150_000


@pytest.mark.slow
def test_the_report_of_many_workers_loads_nothing_and_is_light():
    text = report(made(Kind.MANY, steps=360).state(), "run-1")
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert "default-src 'none'" in text
    assert len(text.encode()) < 500_000
