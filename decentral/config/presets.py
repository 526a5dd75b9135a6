"""Values of the section ``method`` that belong together.

One is chosen by ``method.preset``, each of its values overridden by its own key. Each method has a preset of its name,
for which stating that name alone stands.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # Runs of minutes: plain averaging, often. Chosen by measurement, see docs/benchmarks/quality.md.
    "short": {"name": "diloco", "inner_steps": 3, "outer_lr": 1.0, "outer_momentum": 0.0},
    # arXiv 2311.08105: runs of at least some tens of thousands of steps.
    "diloco": {"name": "diloco", "inner_steps": 500, "outer_lr": 0.7, "outer_momentum": 0.9},
    # arXiv 2501.18512: syncs that cost no time. It prints no momentum (0.9 by lineage) and no scaling for its four
    # bits: those are ours.
    "streaming": {
        "name": "diloco",
        "inner_steps": 100,
        "outer_lr": 0.4,
        "outer_momentum": 0.9,
        "fragments": "paper",
        "delay_steps": 1,
        "mix_alpha": 0.5,
        "codec": "e3m0-b128",
        "feedback": "none",
    },
    # arXiv 2502.12996: a whole round to hide an exchange in. Rates and H are those of streaming's family.
    "eager": {"name": "diloco", "inner_steps": 30, "outer_lr": 0.4, "outer_momentum": 0.9, "eager": True},
    # arXiv 2508.15706: 146 times fewer bytes up than in fp32; see docs/algorithms/sparseloco.md.
    "sparseloco": {
        "name": "sparseloco",
        "inner_steps": 30,
        "outer_lr": 1.0,
        "outer_momentum": 0.0,
        "codec": "topk1.5-2bit",
        "feedback_decay": 0.95,
        "mean_over": "senders",
    },
    # arXiv 2506.10911; gamma is that of its code, the paper does not state it.
    "noloco": {
        "name": "noloco",
        "inner_steps": 50,
        "outer_lr": 0.7,
        "outer_momentum": 0.5,
        "gamma": 0.7,
        "group_size": 2,
    },
    # arXiv 2401.09135: workers as fast as each can. The rule itself divides by the number of workers, hence a rate
    # as large as that of an all-reduce.
    "async": {
        "name": "async",
        "inner_steps": 50,
        "outer_lr": 0.7,
        "outer_momentum": 0.9,
        "momentum_share": 0.0,
        "dylu": True,
    },
}
