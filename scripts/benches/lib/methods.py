"""Every way of training together, as settings of a simulated swarm; its rounds take a second. Knows no faults."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from decentral.codecs import feedback
from decentral.codecs.codec import make_codec
from decentral.exchange.allreduce.options import AllReduceOptions, Merge
from decentral.exchange.allreduce.participants import Quorum
from decentral.exchange.gossip.options import GossipOptions, RandomSwaps
from decentral.exchange.server.options import ServerOptions
from decentral.outer.diloco import DiLoCo
from decentral.outer.eager import Eager
from decentral.outer.ef21 import Ef21
from decentral.outer.follow import Follow
from decentral.outer.noloco import NoLoCo
from decentral.outer.sparseloco import SparseLoCo
from decentral.schedule.plan import SyncPlan
from scripts.benches.lib.counting import ADD_UP, ADD_UP_AT_SERVERS

Settings = Mapping[str, Any]

FP32, INT8, INT4 = map(make_codec, ("fp32", "int8-b8", "int4-b8"))
LOSSY: Settings = {"codec": "int4-b8", "feedback": feedback.ErrorFeedback}
ALONE = DiLoCo(lr=0.7, momentum=0.5, nesterov=False)
EAGER = Eager(lr=0.7, momentum=0.5)
TWELVE: Settings = {"step_s": 1 / 12}
TWO: Settings = {"plan": SyncPlan(2), "step_s": 0.5}
FOUR = AllReduceOptions(quorum=Quorum(4, 0.3))
SLOW: Settings = {"paces": {1: 2.0}, "step_sigma": 0.05}

#: By method its variants.
SWARMS: dict[str, tuple[Settings, ...]] = {
    "all-reduce": ({}, {"mixing": AllReduceOptions(Merge.RADIAL), "weight_by": "token-rate", **SLOW}),
    "feedback": (LOSSY, {"codec": "int8-b8-sr", "feedback": feedback.Ef21, "rule": Ef21(DiLoCo(lr=0.7, momentum=0.5))}),
    "fragments": (
        {"plan": SyncPlan(12, 3, 2), "mix_alpha": 0.5, **TWELVE},
        {"plan": SyncPlan(12, 3), "auto_delay": True, "auto_groups": True, "mix_alpha": 0.5, **TWELVE, **LOSSY},
        {"plan": SyncPlan(12, 2, 5), "pattern": "sequential", **TWELVE},
    ),
    "eager": ({"eager": EAGER}, {"plan": SyncPlan(12, 4), "num_tensors": 4, "eager": EAGER, **TWELVE, **LOSSY}),
    "gossip-rounds": (
        {"rule": NoLoCo(), "mixing": GossipOptions(FP32, FP32), **TWO},
        {"rule": NoLoCo(group_size=3), "mixing": GossipOptions(INT8, INT4, group_size=3), **TWO, **LOSSY},
        {"rule": NoLoCo(), "mixing": GossipOptions(FP32, FP32), "plan": SyncPlan(6, 3, 1), "step_s": 1 / 6},
    ),
    "gossip-random": (
        {"rule": ALONE, "mixing": GossipOptions(FP32, FP32, swaps=RandomSwaps(1.0)), **TWO},
        {"rule": ALONE, "mixing": GossipOptions(INT8, INT4, swaps=RandomSwaps(1.0)), **TWO, **LOSSY},
    ),
    "async": (
        {"rule": Follow(), "mixing": ServerOptions(lr=0.7, momentum=0.5), **SLOW},
        {"rule": Follow(), "mixing": ServerOptions(lr=0.7, momentum=0.5, share=0.05), **LOSSY},
        {"rule": Follow(), "mixing": ServerOptions(lr=0.7, momentum=0.5, every=4), "plan": SyncPlan(12, 3), **TWELVE},
    ),
    "quorum": (
        {"mixing": FOUR, **SLOW},
        {"mixing": FOUR, "plan": SyncPlan(10, delay_steps=3), "mix_alpha": 0.5, **SLOW},
    ),
    "local-sgd": ({"rule": DiLoCo(lr=1.0, momentum=0.0)}, {"rule": DiLoCo(lr=1.0, momentum=0.0), "codec": "int8-b8"}),
    "sparseloco": (
        {
            "rule": SparseLoCo(lr=0.1),
            "codec": "topk6-8bit",
            "feedback": partial(feedback.ErrorFeedback, decay=0.95),
            "mixing": AllReduceOptions(Merge.SENDERS),
            **TWO,
        },
    ),
}
#: Methods in which every inner step can be told from every other one in an anchor, for ``Counting`` swarms.
COUNTED: dict[str, tuple[Settings, ...]] = {
    "counted rounds": (ADD_UP,),
    "counted fragments": ({**ADD_UP, "plan": SyncPlan(12, 3), **TWELVE},),
    "counted overlap": (
        {**ADD_UP, "plan": SyncPlan(10, delay_steps=2)},
        {**ADD_UP, "plan": SyncPlan(12, 3, 1), **TWELVE},
    ),
    "counted eager": (
        {**ADD_UP, "eager": Eager(1.0, 0.0)},
        {**ADD_UP, "eager": Eager(1.0, 0.0), "plan": SyncPlan(12, 3), **TWELVE},
    ),
    "counted servers": (ADD_UP_AT_SERVERS, {**ADD_UP_AT_SERVERS, "plan": SyncPlan(12, 3), **TWELVE}),
}
