"""Tables of Markdown."""

from collections.abc import Iterable


def head(columns: str) -> str:
    """The two lines above the rows.

    Args:
        columns: names between bars; one that ends with a colon is set to the right.
    """
    names = [name.strip() for name in columns.split("|")]
    rules = "|".join("---:" if name.endswith(":") else "---" for name in names)
    return f"{row(*(name.removesuffix(':') for name in names))}\n|{rules}|"


def row(*cells: object) -> str:
    """One line."""
    return "|" + "".join(f" {cell} |" if cell != "" else " |" for cell in cells)


def table(columns: str, rows: Iterable[Iterable[object]]) -> str:
    """All of it, without a newline at the end."""
    return "\n".join([head(columns), *(row(*cells) for cells in rows)])
