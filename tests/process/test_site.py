"""The site of the docs, built as a release builds it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from decentral.errors import ExitCode
from tests.support.docs import PAGES, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = (sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", "scripts/docsite/mkdocs.yml")
    built = subprocess.run([*command, "--site-dir", folder], cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def test_a_search_for_an_exit_code_finds_its_section(site: Path) -> None:
    sections = json.loads((site / "search/search_index.json").read_text())["docs"]
    titles = {entry["title"]: entry["location"] for entry in sections}
    for code in ExitCode:
        assert titles[f"Exit code {code.value}: {code.name}"].startswith("exit-codes.html#")


def test_every_page_is_there_and_in_the_navigation_of_the_first(site: Path) -> None:
    first = (site / "index.html").read_text()
    for page in PAGES[1:]:
        place = page.relative_to(ROOT / "docs").with_suffix(".html")
        assert (site / place).exists()
        assert f'href="{place}"' in first


def test_no_page_takes_anything_from_elsewhere(site: Path) -> None:
    """A link may lead out; what a browser loads by itself may not."""
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]*\bsrc=\"?(?:https?:)?//|<link[^>]*rel=\"?(?:stylesheet|preload|preconnect)[^>]*href=\"?(?:https?:)?//"
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    assert [page for page in pages if loaded.search(page.read_text())] == []
