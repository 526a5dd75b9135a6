"""What mkdocs calls while it builds the site: README is its first page, references are made from the code."""

import re
from typing import Any

from mkdocs.structure.files import File, Files

from scripts.docsite.reference import PAGES, ROOT


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that no file in ``docs`` has."""
    readme = (ROOT / "README.md").read_text().replace("](docs/", "](")
    for place, text in {"index.md": readme, **{place: make() for place, make in PAGES.items()}}.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to README lead to the first page."""
    return re.sub(r"\]\((?:\.\./)?((?:\.\./)*)README\.md", r"](\1index.md", markdown)
