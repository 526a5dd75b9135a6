"""The page as browsers get it: its files, what it may load, and the report, which is all of it in one file."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

#: In the order in which they are loaded; the library of charts first (its licence: ``uplot-LICENSE``).
STYLES = ("uplot.css", "page.css")
SCRIPTS = ("uplot.js", "words.js", "charts.js", "tables.js", "links.js", "page.js")
TYPES = {"css": "text/css", "js": "text/javascript"}
#: Nothing but the files of the place it comes from; no frame around it, no form.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def read(name: str) -> str:
    """A file of the page."""
    return files("decentral.dashboard").joinpath("static", name).read_text(encoding="utf-8")


def live_page(token: str) -> str:
    """The page that asks the server it came from; its files are asked for with the same token."""
    query = f"?token={token}" if token else ""
    head = [f'<link rel="stylesheet" href="static/{name}{query}">' for name in STYLES]
    scripts = [f'<script src="static/{name}{query}" defer></script>' for name in SCRIPTS]
    return _filled(head + scripts, "")


def report(state: Mapping[str, Any], title: str) -> str:
    """A file that shows a run as it was at the end; it loads nothing, and needs no server.

    Args:
        state: see ``History.state``.
        title: of the page.
    """
    styles, scripts = [read(name) for name in STYLES], [read(name) for name in SCRIPTS]
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:"
    policy += f"; script-src {_hashes(scripts)}; style-src {_hashes(styles)}"
    head = [
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f"<!--\nuPlot:\n{read('uplot-LICENSE')}-->",
        *(f"<style>{text}</style>" for text in styles),
    ]
    # A script's text ends at the first "</script", whatever stands around it.
    data = json.dumps(state, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    body = [
        f'<script type="application/json" id="state">{data}</script>',
        *(f"<script>{text}</script>" for text in scripts),
    ]
    return _filled(head, "\n".join(body), title)


def _filled(head: list[str], tail: str, title: str = "decentral") -> str:
    page = read("page.html").replace("<title>decentral</title>", f"<title>{html.escape(title)}</title>")
    return page.replace("<!-- head -->", "\n".join(head)).replace("<!-- tail -->", tail)


def _hashes(texts: list[str]) -> str:
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    return " ".join(f"'sha256-{digest}'" for digest in digests)
