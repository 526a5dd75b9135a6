"""The wheel, built from the sdist, has the package and nothing else, and works where there is no checkout."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from decentral import PROTOCOL, __version__
from tests.support.docs import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TINY = ("--set", "run.rounds=2", "--set", "task.settings.model.d_model=32", "--set", "method.inner_steps=1")


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By way of the sdist, as ``python -m build`` makes it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    assert len(list(folder.glob("decentral-*.tar.gz"))) == 1
    (made,) = folder.glob("decentral-*.whl")
    return made


def test_a_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"decentral"}
    modules = {f"decentral/{path.relative_to(ROOT / 'decentral')}" for path in (ROOT / "decentral").rglob("*.py")}
    modules |= {f"decentral/{path.relative_to(ROOT)}" for path in (ROOT / "workers").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert {"decentral/py.typed", "decentral/commit.txt"} <= set(names)


def test_it_trains_where_there_is_no_checkout(wheel: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv, cwd=tmp_path)
    # What decentral needs comes from here; an editable decentral does not, as its own .pth file is not read.
    site = next(venv.glob("lib/python*/site-packages"))
    (site / "needed.pth").write_text(sysconfig.get_path("purelib"))
    run(venv / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    commit = run("git", "rev-parse", "HEAD", cwd=ROOT)[:12]
    version = run(venv / "bin/decentral", "--version", cwd=tmp_path)
    assert version == f"decentral {__version__} ({commit}), protocol {PROTOCOL}\n"
    out = run(venv / "bin/decentral", "local", "--workers", "2", *TINY, "--out", "run", cwd=tmp_path)
    assert "after round 2" in out
    assert (tmp_path / "run/model.safetensors").exists()
