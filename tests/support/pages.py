"""The programs that the pages of the adapters print."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
#: Each page with the name that its program gives to the model which it shares.
PAGES = {"transformers": "model", "lightning": "module", "accelerate": "mine"}


def program(page: str) -> str:
    """The page's program, as it is printed."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (DOCS / f"{page}.md").read_text(), re.MULTILINE | re.DOTALL)
    return str(code)


def before_the_swarm(page: str) -> str:
    """Of the program what comes before it founds or joins."""
    made, found, _ = program(page).partition("if len(sys.argv) > 1:\n")
    assert found
    return made
