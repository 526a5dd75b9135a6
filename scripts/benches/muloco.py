"""MuLoCo's claim at our scale: Muon against AdamW inside DiLoCo, each with its own learning rate, two bits a value.

    scripts/bench muloco                # goes on where the record stops
    scripts/bench muloco --seed 1 --seed 2 --seed 3 --tokens 921600

Production workers train the language model; the network alone is simulated. An arm is an inner optimizer with a number
of inner steps; beside them, one process with the global batch, which is what data-parallel training computes. All arms
get the same search: ``RATES`` on one seed with values as they are (fp32), and one rate further where the best is the
first or the last. What is compared are runs with other seeds at the best rate, all arms in two bits first, then in
fp32, then the process alone. Appends to OUT.json after every run and writes OUT.md anew; the section "Findings" is
written by hand and kept.
"""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.benches.lib.command import Parser, enter
from scripts.benches.lib.report import Record, kept, places, read, write
from scripts.benches.lib.stats import between, gaps, listed
from scripts.benches.lib.tables import table
from scripts.benches.lib.training import drawn_ids
from scripts.benches.lib.variants import Run, agreed_loss

SCRIPT = "muloco"
OPTIMIZERS = ("AdamW", "Muon")
WORKERS, SEQUENCES = 4, 6
#: Of an arm; 1 for the process with the global batch, where a round changes nothing.
INNER_STEPS = (30, 100, 1)
#: Of the learning rate: what every arm tries, and how many it tries at most.
RATES, MOST_RATES = (4e-3, 8e-3, 16e-3), 4
TUNING_SEED = 0
EXACT, TWO_BITS = "codec=fp32", "codec=int2-b128 mean_codec=int2-b128"
SETTINGS = (
    *("model.d_model=40", "model.num_layers=2", "model.num_heads=4", "model.context=64"),
    *("optimizer.warmup_steps=60", "val_batches=64"),
)
METHOD = ("method.name=diloco", "method.outer_lr=0.7", "method.outer_momentum=0.6")
ALONE = ("method.name=local-sgd",)
#: What else their code has for several workers, each tried on one seed with H = 30: settings, and codec.
SIDES = (("outer_lr=0.8 outer_momentum=0.9", EXACT), ("feedback_decay=0.9", TWO_BITS))
SIDE_STEPS = 30
Arm = tuple[str, int]
ARMS: tuple[Arm, ...] = tuple((optimizer, steps) for steps in INNER_STEPS for optimizer in OPTIMIZERS)


def codecs(arm: Arm) -> tuple[str, ...]:
    """What an arm sends in; a process alone sends nothing."""
    return (EXACT,) if arm[1] == 1 else (EXACT, TWO_BITS)


def side(settings: str, codec: str) -> str:
    """A codec with further settings of the method."""
    return f"{codec} {settings}"


def variant(arm: Arm, rate: float, codec: str) -> str:
    """The settings in which a run differs from the others."""
    task = "task.settings.optimizer"
    steps = 30 if arm[1] == 1 else arm[1]
    sequences = SEQUENCES * (WORKERS if arm[1] == 1 else 1)
    batch = f"task.settings.batch_sequences={sequences}"
    return f"{task}.name={arm[0]} {task}.learning_rate={rate:g} {batch} inner_steps={steps} {codec}"


def losses(records: Sequence[Record], arm: Arm, rate: float, codec: str) -> dict[int, float]:
    """By seed."""
    name = variant(arm, rate, codec)
    return {run["seed"]: run["val_loss"] for run in records if run["variant"] == name}


def tried(records: Sequence[Record], arm: Arm) -> dict[float, float]:
    """Losses by learning rate, of the seed that rates are tried with."""
    rates = [RATES[0] / 2, *RATES, 2 * RATES[-1]]
    found = {rate: losses(records, arm, rate, EXACT).get(TUNING_SEED) for rate in rates}
    return {rate: loss for rate, loss in found.items() if loss is not None}


def rate_to_try(found: dict[float, float]) -> float | None:
    """The next one; ``None`` if the search is over."""
    for rate in RATES:
        if rate not in found:
            return rate
    best = min(found, key=found.__getitem__)
    if len(found) < MOST_RATES and best in (RATES[0], RATES[-1]):
        return best / 2 if best == RATES[0] else 2 * best
    return None


def best_rate(records: Sequence[Record], arm: Arm) -> float | None:
    """That of the least loss, once the search is over."""
    found = tried(records, arm)
    return None if rate_to_try(found) is not None else min(found, key=found.__getitem__)


def next_run(records: Sequence[Record], seeds: Sequence[int], tokens: int) -> Run | None:
    """What is to be run with what there is already; ``None`` at the end."""

    def run(arm: Arm, rate: float, codec: str, seed: int) -> Run:
        alone = arm[1] == 1
        settings = [*(f"task.settings.{setting}" for setting in SETTINGS), *(ALONE if alone else METHOD)]
        return Run(SCRIPT, variant(arm, rate, codec), seed, tokens, 1 if alone else WORKERS, settings)

    compared = [(arm, codec, seed) for codec in (TWO_BITS, EXACT) for seed in seeds for arm in ARMS if arm[1] > 1]
    alone = [(arm, EXACT, seed) for seed in seeds for arm in ARMS if arm[1] == 1]
    sides = [((name, SIDE_STEPS), side(*each), seeds[0]) for each in SIDES for name in OPTIMIZERS]
    searched = [(arm, EXACT, TUNING_SEED) for arm in ARMS if arm[1] > 1]
    for arm, codec, seed in [*searched, *compared, *alone, *sides]:
        found = tried(records, arm)
        rate = rate_to_try(found)
        if rate is not None:
            return run(arm, rate, EXACT, TUNING_SEED)
        best = min(found, key=found.__getitem__)
        if seed not in losses(records, arm, best, codec):
            return run(arm, best, codec, seed)
    return None


def measure(run: Run) -> Record:
    """One swarm from its start to its end; its ids are drawn by its seed, and with them who reduces what."""
    play = run.play(ids=drawn_ids(run.seed))
    return {**run.record(play), "val_loss": agreed_loss(play)}


def page(out: Path, records: list[Record]) -> str:
    """The raw numbers as tables."""
    parts = [_HEAD, kept(out)]
    if records:
        first = next((each for each in records if each["workers"] == WORKERS), records[0])
        size = (
            f"{first['workers']} workers, each with batches of {SEQUENCES} sequences; {first['numel']:,} parameters, "
        )
        size += f"{first['tokens']:,} tokens of the swarm"
        what = ", ".join(f"`{setting}`" for setting in first["settings"])
        parts.append(f"## Losses\n\n{size}; {what}.\n\n{table(_COLUMNS, compared(records))}\n")
        parts.append(f"## Learning rates\n\n{table(_RATES, [rates(records, arm) for arm in ARMS])}\n")
        parts.append(f"## Other settings\n\n{_OTHER}\n\n{table(_SIDES, list(others(records)))}\n")
        parts.append("\n".join([*places(records), "", f"    {first['command']}", ""]))
    return "\n".join(parts)


def compared(records: list[Record]) -> list[list[object]]:
    """A row for each arm and codec at the arm's best rate, without the seed that it was found with."""
    rows: list[list[object]] = []
    for arm in ARMS:
        for codec in codecs(arm):
            found = _results(records, arm, codec)
            if not found:
                continue
            own = list(found.values())
            against = {
                "AdamW": {} if arm[0] == OPTIMIZERS[0] else _results(records, (OPTIMIZERS[0], arm[1]), codec),
                "parallel": {} if arm[1] == 1 else _results(records, (arm[0], 1), EXACT),
                "fp32": {} if codec == EXACT else _results(records, arm, EXACT),
            }
            what = [arm[0], _length(arm), "32" if codec == EXACT else "2.125", f"{best_rate(records, arm):g}"]
            deviation = f"{statistics.stdev(own):.4f}" if len(own) > 1 else ""
            losses_of = [listed(own, ".4f"), f"{statistics.mean(own):.4f}", deviation]
            rows.append([*what, *losses_of, *(_gap(gaps(found, other)) for other in against.values())])
    return rows


def rates(records: list[Record], arm: Arm) -> list[object]:
    """A row for each arm: what was tried with one seed."""
    found, best = tried(records, arm), best_rate(records, arm)
    cells = [f"{rate:g}: {'**' * (rate == best)}{found[rate]:.4f}{'**' * (rate == best)}" for rate in sorted(found)]
    return [arm[0], _length(arm), ", ".join(cells)]


def others(records: list[Record]) -> Iterator[list[object]]:
    """A row for each of ``SIDES`` and optimizer, with the seed that it was tried with."""
    for settings, codec in SIDES:
        for name in OPTIMIZERS:
            arm = (name, SIDE_STEPS)
            plain, changed = (_results(records, arm, each) for each in (codec, side(settings, codec)))
            for seed, loss in changed.items():
                yield [f"`{settings}`", codec.split()[0], name, seed, f"{loss:.4f}", f"{loss / plain[seed] - 1:+.2%}"]


def _length(arm: Arm) -> str:
    return "data-parallel" if arm[1] == 1 else str(arm[1])


def _results(records: list[Record], arm: Arm, codec: str) -> dict[int, float]:
    """Losses by seed at the best rate."""
    best = best_rate(records, arm)
    found = {} if best is None else losses(records, arm, best, codec)
    return {seed: found[seed] for seed in sorted(found) if seed != TUNING_SEED}


def _gap(found: list[float]) -> str:
    return f"{statistics.mean(found):+.2%} ({between(found, '+.2%')})" if found else ""


_HEAD = f"""# Muon inside DiLoCo

Written by `scripts/bench muloco`; the raw numbers are in `muloco.json`. MuLoCo (arXiv 2505.23725) says that Muon as the
inner optimizer of DiLoCo ends at a lower loss than AdamW, and that two bits a value, with error feedback, cost it next
to nothing. Here production workers train the byte-level language model on Python's standard library at about 20 tokens
a parameter; the network alone is simulated. Muon steps the matrices between embedding and output layer, AdamW the rest.

Each arm (inner optimizer and H) has its own peak learning rate, from equal searches in fp32: {len(RATES)} rates with
seed {TUNING_SEED}, and one further where the best was at the edge. With two bits the rate is that of the same arm in
fp32. The runs that are compared have other seeds, of weights, data, identities and everything drawn. Contributions and
their mean travel in `int2-b128`, both with error feedback. The outer step is one for all (rate 0.7, momentum 0.6), and
was not searched. *Data-parallel* is one process with the batches of all {WORKERS} workers as one, as many steps as each
of them takes, and a search of its own. Loss in nats per byte on held-out text.

* **sd**: standard deviation over the seeds. **to AdamW**: Muon's loss against AdamW's with the same H, codec and seed;
  mean, and least to greatest. **to data-parallel**: against the same optimizer and seed there. **to fp32**: against the
  same arm and seed with values as they are.
"""

_OTHER = """What the authors' code has beside that for several workers, each tried with one seed and the rate that was
found without it. **change**: to the same arm, codec and seed above."""

_COLUMNS = (
    "inner optimizer | H: | bits: | rate: | loss by seed | mean: | sd: | to AdamW: | to data-parallel: | to fp32:"
)
_RATES = "inner optimizer | H: | loss by peak learning rate, the best in bold"
_SIDES = "settings | codec | inner optimizer | seed: | loss: | change:"


def main() -> None:
    """Run what is missing."""
    parser = Parser(SCRIPT, __doc__, "muloco")
    parser.repeated("--seed", int, [1, 2, 3])
    parser.add_argument("--tokens", type=int, default=921_600, help="of each run at most, over all workers")
    parser.add_argument("--runs", type=int, default=1000, help="at most; the next call goes on")
    options = parser.parse_args()
    records: list[Record] = read(options.out, [])
    for _ in range(options.runs):
        run = next_run(records, options.seed, options.tokens)
        if run is None:
            break
        record = measure(run)
        print(f"seed {run.seed}  {run.variant}  {record['val_loss']:.4f}  {record['seconds']:.0f} s", flush=True)
        records.append(record)
        write(options.out, records, page(options.out, records))
    write(options.out, records, page(options.out, records))


if __name__ == "__main__":
    enter(main)
