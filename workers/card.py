"""The model card beside weights: a page of Markdown, with the head that a hub reads. It writes no file."""

import math
from collections.abc import Mapping, Sequence

from decentral import __version__
from decentral.ports.trainer import Lineage


def model_card(about: Lineage, rows: Mapping[str, str], head: Sequence[str]) -> str:
    """The card's text.

    Args:
        about: the weights.
        rows: what else there is to say; what is empty is left out.
        head: further lines of its head.
    """
    by = f"{about.num_workers} workers" if about.num_workers > 1 else "the worker that wrote this"
    every = {
        "run": about.run,
        "method": about.method,
        "round": f"{about.round:,}",
        "inner steps": f"{about.step:,}" if about.step is not None else "",
        "tokens": f"{about.tokens:,} by {by}" if about.tokens is not None else "",
        "validation loss": f"{about.loss:.4f} nats per token" if math.isfinite(about.loss) else "not measured",
        **rows,
    }
    lines = ["---", "pipeline_tag: text-generation", *head, "tags:", "- decentral", "---", f"# {about.run}", ""]
    lines += [f"Trained with decentral {__version__}, by workers that are not in one place.", "", "| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {key} | {value} |" for key, value in every.items() if value), ""])
