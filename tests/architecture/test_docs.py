"""What users can meet is described where they look for it."""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import dropwhile
from typing import Any

import pytest
import typer

from decentral import errors
from decentral.cli.app import app
from decentral.errors import DecentralError, ExitCode
from tests.support.docs import PAGES, ROOT, anchors, blocks, links, name

DOCS = "\n".join(page.read_text() for page in PAGES if "benchmarks" not in page.parts)
ANCHORS = {page: anchors(page) for page in PAGES}

GROUP: Any = typer.main.get_command(app)
FLAGS = sorted(
    {
        option
        for command in GROUP.commands.values()
        for one in command.params
        for option in one.opts
        if option[:2] == "--"
    }
    - {"--help"}
)


def test_every_exit_code_has_a_section_and_no_other_has() -> None:
    sections = re.findall(
        r"^## Exit code (\d+): (\w+)\n\n(?=[A-Z])", (ROOT / "docs/exit-codes.md").read_text(), re.MULTILINE
    )
    assert [(int(number), name) for number, name in sections] == [(code.value, code.name) for code in ExitCode]


def _warnings() -> Iterator[tuple[str, str]]:
    """Where the package warns, and of what: the longest piece of it that is always the same."""
    for file in (*ROOT.glob("decentral/**/*.py"), *ROOT.glob("workers/**/*.py")):
        source = file.read_text()
        for call in ast.walk(ast.parse(source)) if ".warning(" in source else ():
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "warning":
                text = ast.literal_eval(call.args[0])
                yield f"{file.name}:{call.lineno}", max(re.split(r"%[.\d]*[a-z]", text), key=len).strip(" :;()")


def test_every_warning_is_described() -> None:
    page = " ".join((ROOT / "docs/warnings.md").read_text().split())
    warnings = list(_warnings())
    assert len(warnings) > 20
    assert [(where, text) for where, text in warnings if text not in page] == []


def test_words_are_spelt_right() -> None:
    folders = ("README.md", "docs", "decentral", "workers", "scripts")
    found = subprocess.run([sys.executable, "-m", "codespell_lib", *folders], cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_every_link_leads_somewhere() -> None:
    broken = []
    for page, link in ((one, link) for one in PAGES for link in links(one)):
        path, _, anchor = link.partition("#")
        if ":" in path:  # to the rest of the world, which no test can reach
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in ANCHORS.get(target, ())):
            broken.append(f"{name(page)}: {link}")
    assert broken == []


def test_every_command_is_one() -> None:
    """That the real command line takes it; whether it works is for the tests of processes."""
    for block in (block for page in PAGES for block in blocks(page)):
        for words in block.commands:
            _parse(words, block.where)


def _parse(words: tuple[str, ...], where: str) -> None:
    program, *rest = dropwhile(re.compile(r"[A-Z_]+=").match, words)
    if program.startswith("scripts/"):
        assert os.access(ROOT / program, os.X_OK), f"{where}: there is no {program}"
    if program == "scripts/bench" and rest[0] != "all":
        assert (ROOT / f"scripts/benches/{rest[0].replace('-', '_')}.py").is_file(), f"{where}: no bench {rest[0]}"
    if program == "torchrun" and "decentral" in rest:
        program, rest = "decentral", rest[rest.index("decentral") + 1 :]
    command = GROUP
    if program != "decentral" or rest == ["--version"]:
        return
    try:
        while isinstance(command, typer.core.TyperGroup):
            command = command.commands[rest.pop(0)]
        command.make_context(words[0], rest)
    except Exception as err:
        raise AssertionError(f"{where}: {shlex.join(words)}: {err!r}") from err


def test_every_command_is_run_by_a_test_or_says_why_not() -> None:
    """Those of decentral are run by ``tests/unit/cli/test_documented.py``; others take machines, people or minutes."""
    found = [block for page in PAGES for block in blocks(page)]
    assert len(found) > 40
    assert [
        block.where for block in found if not block.not_run and {words[0] for words in block.commands} != {"decentral"}
    ] == []


def test_wrong_commands_are_found() -> None:
    of_ours = ("decentral wroker --new", "decentral worker --gnu", "decentral local --workers two")
    for wrong in (*of_ours, "scripts/none", "scripts/bench none"):
        with pytest.raises(AssertionError):
            _parse(tuple(wrong.split()), "here")


def test_every_error_has_an_exit_code_of_its_own() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DecentralError)]
    assert len(kinds) > 10
    own = [kind for kind in kinds if kind is not errors.ReportError]  # also a fault of the trainer
    assert len({kind.exit_code for kind in own}) == len(own)


def test_the_flags_are_found() -> None:
    assert {"--join", "--new", "--watch", "--workers"} <= set(FLAGS)


def test_every_flag_is_described() -> None:
    assert [flag for flag in FLAGS if not re.search(rf"{flag}(?![\w-])", DOCS)] == []
