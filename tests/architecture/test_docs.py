"""What users can meet is described where they look for it."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from decentral import errors
from decentral.cli.app import app
from decentral.errors import DecentralError, ExitCode

ROOT = Path(__file__).parents[2]
DOCS = "\n".join((ROOT / name).read_text() for name in ("README.md", "docs/configuration.md") if (ROOT / name).exists())

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


@pytest.mark.parametrize("code", ExitCode)
def test_every_exit_code_is_described(code: ExitCode) -> None:
    text = (ROOT / "docs/exit-codes.md").read_text()
    assert re.search(rf"^\| {code.value} \| `{code.name}` \| \w.+ \|", text, re.MULTILINE)


def test_no_exit_code_is_described_that_does_not_exist() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", (ROOT / "docs/exit-codes.md").read_text(), re.MULTILINE)
    assert {(int(number), name) for number, name in rows} == {(code.value, code.name) for code in ExitCode}


def test_every_error_has_an_exit_code_of_its_own() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DecentralError)]
    assert len(kinds) > 10
    own = [kind for kind in kinds if kind is not errors.ReportError]  # also a fault of the trainer
    assert len({kind.exit_code for kind in own}) == len(own)


def test_the_flags_are_found() -> None:
    assert {"--join", "--new", "--watch", "--workers"} <= set(FLAGS)


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_is_described(flag: str) -> None:
    assert re.search(rf"{flag}(?![\w-])", DOCS), f"{flag} is neither in README.md nor in docs/configuration.md"
