"""README and pages as their readers see them: blocks of commands, links and headings, as markdown-it finds them."""

import functools
import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
#: All that people wrote; what is made from the code at build time is not in it.
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

_MARKDOWN = MarkdownIt("commonmark").enable("table")
#: In front of a block: none of its commands is run by a test, and why.
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->", re.DOTALL)
#: What a line of a block begins with if it is a command and not what one prints.
_PROGRAMS = ("decentral", "torchrun", "scripts/", ".venv/", "pip", "sudo", "nc", "docker", "kubectl", "systemctl")
#: Only at the beginning of a word: an address has a # inside of it.
_COMMENT = re.compile(r"(^|\s)#.*")
_VARIABLE = re.compile(r"[A-Z][A-Z_]*=\S*")


@dataclass(frozen=True)
class Block:
    """Commands in a fenced block.

    Attributes:
        where: page and line, for messages.
        commands: each with its words, as a shell would take them apart.
        not_run: why no test runs them; empty if one does.
    """

    where: str
    commands: tuple[tuple[str, ...], ...]
    not_run: str


def name(page: Path) -> str:
    """The page as its links name it, from the root."""
    return str(page.relative_to(ROOT))


@functools.cache
def _tokens(page: Path) -> list[Token]:
    return _MARKDOWN.parse(page.read_text())


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page that have commands in them."""
    not_run = ""
    for token in _tokens(page):
        if token.type == "fence" and token.info in ("", "sh") and token.map:
            if found := tuple(_commands(token.content)):
                yield Block(f"{name(page)}:{token.map[0] + 1}", found, not_run)
            not_run = ""
        elif token.type == "html_block":
            marked = _NOT_RUN.search(token.content)
            not_run = " ".join(marked[1].split()) if marked else ""


def _commands(text: str) -> Iterator[tuple[str, ...]]:
    lines = text.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):  # a session: the rest is what was printed
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    for line in lines:
        start = line.split()
        while start and _VARIABLE.fullmatch(start[0]):
            start = start[1:]
        if start and any(start[0] == one or (one[-1] == "/" and start[0].startswith(one)) for one in _PROGRAMS):
            yield tuple(shlex.split(_COMMENT.sub("", line)))


def links(page: Path) -> Iterator[str]:
    """Where the page's links lead, pictures included."""
    for token in _tokens(page):
        for child in token.children or ():
            target = child.attrs.get("href") or child.attrs.get("src")
            if target:
                yield str(target)


def anchors(page: Path) -> list[str]:
    """The anchors of a page's headings, as both GitHub and the site make them."""
    tokens = _tokens(page)
    texts = [after.children or () for before, after in itertools.pairwise(tokens) if before.type == "heading_open"]
    return [_anchor("".join(child.content for child in children)) for children in texts]


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
