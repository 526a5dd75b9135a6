"""A hub of models and data sets on this machine, as far as the libraries that ask one need it."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = 40 * "a"
_PATH = re.compile(r"/(?:api/)?(models/|datasets/)?([\w-]+/[\w-]+)(?:/(resolve|tree|revision)/\w+)?(?:/(.+))?")
#: Status, headers, body.
Answer = tuple[int, dict[str, str], bytes]


class Hub:
    """What lies in ``models/NAME`` and ``datasets/NAME`` of a folder, by the names that they have there.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.address = ""
        self.asked: list[str] = []
        """Paths, in order."""

    @contextmanager
    def open(self) -> Iterator["Hub"]:
        """Listen on a port of the loopback."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                path = unquote(self.path.partition("?")[0])
                hub.asked.append(path)
                status, headers, body = hub._answer(path)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_GET = do_HEAD

            def log_message(self, *words: Any) -> None:
                """Say nothing."""

        return Handler

    def _answer(self, path: str) -> Answer:
        found = _PATH.fullmatch(path)
        kind, name, verb, inside = found.groups() if found else ("", "-", None, None)
        folder = self._root / (kind or "models") / name
        if not folder.is_dir():
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
        if verb == "resolve":
            if inside not in files:
                return 404, {"X-Error-Code": "EntryNotFound"}, b""
            body = files[inside].read_bytes()
            return 200, {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}, body
        if verb == "tree":
            entries = [
                {"type": "file", "path": each, "size": file.stat().st_size, "oid": COMMIT}
                for each, file in files.items()
            ]
            return 200, {"X-Repo-Commit": COMMIT}, json.dumps(entries).encode()
        about = {"id": name, "sha": COMMIT, "private": False, "gated": False, "disabled": False, "tags": []}
        about |= {"downloads": 0, "likes": 0, "siblings": [{"rfilename": each} for each in files]}
        return 200, {}, json.dumps(about).encode()
