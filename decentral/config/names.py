"""What the name of a method stands for: how workers agree, and the defaults of all other keys of ``[method]``.

This is the only place that knows the names; everything else asks for the family. It imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

MethodName = Literal["local-sgd", "diloco", "muloco", "streaming", "eager", "sparseloco", "noloco", "async"]


class Family(StrEnum):
    """Kinds of exchange and outer rule."""

    DILOCO = "diloco"
    """All-reduce of the contributions, then SGD with or without momentum on their mean."""
    EAGER = "eager"
    """The same, and workers go on from their own share of the step while the exchange has the whole next round."""
    SPARSELOCO = "sparseloco"
    """All-reduce of what error feedback lets through, then a plain step."""
    GOSSIP = "gossip"
    """Small groups mix, each worker has an anchor of its own."""
    SERVER = "server"
    """No rounds: a server for each fragment takes contributions one by one."""


ALL_REDUCE = (Family.DILOCO, Family.EAGER, Family.SPARSELOCO)


@dataclass(frozen=True, slots=True)
class Method:
    """What one name stands for."""

    family: Family
    defaults: Mapping[str, Any]
    """By key of ``[method]``; those of all other keys are with the keys."""
    optimizer: str = ""
    """Of the inner steps, below what the task's settings say; empty for the task's own."""


METHODS: Mapping[MethodName, Method] = {
    # Runs of minutes: plain averaging, often. Chosen by measurement, see docs/benchmarks/quality.md.
    "local-sgd": Method(Family.DILOCO, {"inner_steps": 3, "outer_lr": 1.0, "outer_momentum": 0.0}),
    # arXiv 2311.08105: runs of at least some tens of thousands of steps.
    "diloco": Method(Family.DILOCO, {"inner_steps": 500, "outer_lr": 0.7, "outer_momentum": 0.9}),
    # arXiv 2505.23725: the defaults of the authors' code, which are for one worker (for eight: 0.8, 0.9). Its two bits
    # have another scaling.
    "muloco": Method(
        Family.DILOCO, {"inner_steps": 30, "outer_lr": 0.7, "outer_momentum": 0.6, "codec": "int2-b128"}, "Muon"
    ),
    # arXiv 2501.18512: syncs that cost no time. It prints no momentum (0.9 by lineage) and no scaling for its four
    # bits: those are ours.
    "streaming": Method(
        Family.DILOCO,
        {
            "inner_steps": 100,
            "outer_lr": 0.4,
            "outer_momentum": 0.9,
            "fragments": "paper",
            "delay_steps": 1,
            "mix_alpha": 0.5,
            "codec": "e3m0-b128",
            "feedback": "none",
        },
    ),
    # arXiv 2502.12996: a whole round to hide an exchange in. Rates and H are those of streaming's family.
    "eager": Method(Family.EAGER, {"inner_steps": 30, "outer_lr": 0.4, "outer_momentum": 0.9}),
    # arXiv 2508.15706: 146 times fewer bytes up than in fp32; see docs/algorithms/sparseloco.md.
    "sparseloco": Method(
        Family.SPARSELOCO,
        {
            "inner_steps": 30,
            "outer_lr": 1.0,
            "outer_momentum": 0.0,
            "codec": "topk1.5-2bit",
            "feedback_decay": 0.95,
            "mean_over": "senders",
        },
    ),
    # arXiv 2506.10911; its gamma is that of the paper's code.
    # Replicas that did not meet for some rounds are honestly far apart: its bound is wider than an all-reduce's.
    "noloco": Method(Family.GOSSIP, {"inner_steps": 50, "outer_lr": 0.7, "outer_momentum": 0.5, "bound": 5.0}),
    # arXiv 2401.09135: workers as fast as each can. The rule itself divides by the number of workers, hence a rate
    # as large as that of an all-reduce. Its bound is wide as well: who is faster takes more steps at a time.
    "async": Method(
        Family.SERVER, {"inner_steps": 50, "outer_lr": 0.7, "outer_momentum": 0.9, "dylu": True, "bound": 5.0}
    ),
}
#: What a task calls its inner optimizer, for methods that bring one.
OPTIMIZER = "task.settings.optimizer.name"
#: What names of earlier releases are called now.
FORMER_NAMES = {"short": "local-sgd"}


def names_of(*families: Family) -> list[str]:
    """The names of all methods of these families."""
    return [name for name, method in METHODS.items() if method.family in families]
