"""The arms of `scripts/bench frontier`: what each is searched over, and what is to be run next. Knows no page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scripts.benches.lib.arms import ALONE, DATA_PARALLEL, Run
from scripts.benches.lib.report import Record
from scripts.benches.lib.search import Point, best, next_try

#: Those of the quickstart: 117,056 parameters, 512 bytes a step. 1,218 steps of 4 workers are 21 bytes a parameter.
SETTINGS = (
    "task.settings.model.d_model=64",
    "task.settings.model.num_layers=2",
    "task.settings.batch_sequences=4",
    "task.settings.val_batches=64",
)
RATES = (0.001, 0.0016, 0.0025, 0.004, 0.006, 0.01, 0.016, 0.025)
_FIRST_RATE = 4
#: The seed of the searches; further ones count up from it.
SEED = 0
#: Outer learning rate and momentum, by how far a lasting direction is followed in the end: rate / (1 - momentum).
OUTER = tuple(
    f"outer_lr={rate:g} outer_momentum={momentum:g}"
    for rate, momentum in (
        (1, 0),
        (0.7, 0.5),
        (1, 0.3),
        (1, 0.5),
        (1.3, 0.5),
        (1, 0.7),
        (0.4, 0.9),
        (1, 0.8),
        (0.7, 0.9),
        (1, 0.9),
    )
)
_CAREFUL, _BOLD = 1, 3


@dataclass(frozen=True)
class Arm:
    """A way of training, and what is searched beside the learning rate."""

    name: str
    settings: str
    """See ``Run.arm``."""
    others: tuple[str, ...] = ("",)
    first: int = 0
    """Place of the one that is tried first."""
    like: str = ""
    """The arm whose best settings it takes: it is not searched itself, and so may do better than is shown."""

    def run(self, point: Point, seed: int, common: tuple[int, int, list[str]]) -> Run:
        """What is to be run at a point."""
        return Run(f"{self.settings} {self.others[point[1]]}".strip(), seed, RATES[point[0]], *common)

    def points(self, run: Record) -> Iterator[Point]:
        """Where a record lies; nowhere if it is another arm's."""
        for place, other in enumerate(self.others):
            if run["key"][0] == f"{self.settings} {other}".strip() and run["key"][2] in RATES:
                yield RATES.index(run["key"][2]), place


def _outer(name: str, settings: str, first: int = _CAREFUL, like: str = "") -> Arm:
    return Arm(name, settings, OUTER, first, like)


def _diloco(inner_steps: int, codec: str = "fp32", first: int = _CAREFUL) -> Arm:
    like = "" if codec == "fp32" else f"DiLoCo, H {inner_steps}, fp32"
    settings = f"name=diloco inner_steps={inner_steps} codec={codec}"
    return _outer(f"DiLoCo, H {inner_steps}, {codec}", settings, first, like)


def _in_parts(delay: str, alpha: str) -> Arm:
    """Parts that travel while training goes on, so many steps late, or as late as the network asks for (here one)."""
    name = (
        "DiLoCo, H 30, in parts" + (f", delay {delay}" if delay != "auto" else "") + (f", mix {alpha}" if alpha else "")
    )
    mixed = f" mix_alpha={alpha}" if alpha else ""
    return _outer(name, f"name=diloco inner_steps=30 fragments=auto delay_steps={delay}{mixed}", _BOLD)


def _sparseloco(inner_steps: int, over: str, others: tuple[str, ...]) -> Arm:
    settings = f"name=sparseloco inner_steps={inner_steps}" + (f" mean_over={over}" if over != "senders" else "")
    return Arm(f"SparseLoCo, H {inner_steps}, {over}", settings, others, 1)


#: The method's own is 1, over senders.
_SENDERS = ("outer_lr=0.65", "", "outer_lr=1.5", "outer_lr=2")
_MEMBERS = ("outer_lr=1", "outer_lr=2", "outer_lr=3", "outer_lr=4.5")
#: What tells most comes first.
ARMS = (
    Arm(ALONE, ALONE),
    Arm(DATA_PARALLEL, DATA_PARALLEL),
    _diloco(30),
    _diloco(10),
    _diloco(100, first=_BOLD),
    _sparseloco(30, "senders", _SENDERS),
    Arm(
        "NoLoCo, H 30",
        "name=noloco inner_steps=30",
        tuple(f"outer_lr={rate} outer_momentum=0.5" for rate in (0.7, 1.0, 1.3)),
        1,
    ),
    _outer("streaming, H 30", "name=streaming inner_steps=30", _BOLD),
    _outer("async, H 30", "name=async inner_steps=30"),
    _outer("k = 1, H 30", "workers=1 name=diloco inner_steps=30 codec=fp32"),
    _diloco(300, first=_BOLD),
    _sparseloco(10, "senders", _SENDERS),
    _outer("eager, H 30", "name=eager inner_steps=30"),
    _sparseloco(30, "members", _MEMBERS),
    # Those of the quickstart's record.
    _sparseloco(3, "senders", _SENDERS),
    _sparseloco(3, "members", _MEMBERS),
    _sparseloco(4, "senders", _SENDERS),
    Arm("averaging, H 14, e3m0-b128", "name=local-sgd inner_steps=14 codec=e3m0-b128"),
    _diloco(30, "int8-b128"),
    _diloco(30, "e3m0-b128"),
    _diloco(30, "int2-b128"),
    _diloco(100, "e3m0-b128"),
    _diloco(100, "int2-b128"),
    _diloco(300, "e3m0-b128"),
    _diloco(300, "int2-b128"),
    # What a founder takes by itself.
    _diloco(5),
    _diloco(3),
    *(_in_parts(delay, alpha) for delay in ("auto", "5", "10") for alpha in ("", "0")),
    _outer("streaming, H 30, mix 0", "name=streaming inner_steps=30 mix_alpha=0", _BOLD),
    # Those of long runs.
    _diloco(500, first=_BOLD),
    _diloco(500, "int2-b128"),
    _outer("streaming, H 100, mix 0", "name=streaming inner_steps=100 mix_alpha=0", _BOLD),
    _outer("streaming, H 100", "name=streaming inner_steps=100", _BOLD),
    _sparseloco(100, "senders", _SENDERS),
    # Some two thousand times fewer bytes: fewer bits, and shorter rounds for it.
    *(
        _outer(f"DiLoCo, H {inner_steps}, {codec}", f"name=diloco inner_steps={inner_steps} codec={codec}")
        for inner_steps, codec in ((140, "int2-b1024"), (144, "int2-b1024"), (165, "int2-b128"), (358, "int2-b1024"))
    ),
    _outer(
        "DiLoCo, H 130, sign-b1024, means int2",
        "name=diloco inner_steps=130 codec=sign-b1024 mean_codec=int2-b128",
    ),
    _outer("DiLoCo, H 100, topk6-2bit", "name=diloco codec=topk6-2bit inner_steps=100"),
    Arm("SparseLoCo, H 100, topk6-2bit", "name=sparseloco codec=topk6-2bit inner_steps=100"),
)


def tried(arm: Arm, records: Sequence[Record], seed: int = SEED) -> dict[Point, float]:
    """Losses by point, of one seed."""
    return {point: run["val_loss"] for run in records if run["key"][1] == seed for point in arm.points(run)}


def after(arm: Arm) -> Arm:
    """The arm that is searched for it."""
    return next((other for other in ARMS if other.name == arm.like), arm)


def chosen(arm: Arm, records: Sequence[Record]) -> Point | None:
    """The best point of an arm, or of the one that it takes after."""
    found = tried(after(arm), records)
    return best(found) if found else None


def following(arm: Arm, records: Sequence[Record], tries: int) -> Point | None:
    """The next point to try, if an arm is to have so many tries."""
    found = tried(arm, records)
    return next_try(found, (_FIRST_RATE, arm.first), len(RATES), len(arm.others)) if len(found) < tries else None


def copied(arm: Arm, records: Sequence[Record], tries: int) -> Point | None:
    """The point to run an arm at that takes after another, if that one has had no more than so many tries."""
    point = chosen(arm, records)
    return point if len(tried(after(arm), records)) <= tries and point not in tried(arm, records) else None


def next_run(
    arms: Sequence[Arm], records: Sequence[Record], tries: int, seeds: int, common: tuple[int, int, list[str]]
) -> Run | None:
    """What is to be run with what there is already; ``None`` at the end.

    First searches, breadth first; arms that take after others follow the first try of all, and the last.
    """
    for count in range(1, tries + 1):
        for arm in arms:
            if not arm.like:
                point = following(arm, records, count)
            else:
                point = copied(arm, records, count) if count in (1, tries) else None
            if point is not None:
                return arm.run(point, SEED, common)
    for seed in range(SEED + 1, SEED + seeds):
        for arm in arms:
            point = chosen(arm, records)
            if point is not None and point not in tried(arm, records, seed):
                return arm.run(point, seed, common)
    return None


def of_set_up(records: Sequence[Record], common: tuple[int, int, list[str]]) -> list[Record]:
    """The records with these steps, workers and settings."""
    return [record for record in records if record["key"][3:] == list(common)]
