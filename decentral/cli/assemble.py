"""One whole model out of the stages that a pipeline's workers have saved."""

from collections.abc import Mapping, Sequence

from decentral.cli.sources import Part
from decentral.errors import ConfigError, UsageError
from decentral.monitor.stages import name_of
from decentral.state.average import AVERAGE, NEWEST, Chosen, Replica, choose, ensure_one_run, survey


def check_take(take: str | None) -> None:
    """Refuse what cannot be taken of stages.

    Raises:
        UsageError: a choice that goes by losses or by workers, of which none has the whole model.
    """
    if take not in (None, AVERAGE, NEWEST):
        raise UsageError(
            f"Of a pipeline {take} cannot be taken: no worker has the whole model.",
            hint=f"Take {NEWEST} or {AVERAGE}, of each stage.",
        )


def assemble(parts: Sequence[Part], take: str) -> tuple[Replica, dict[int, Chosen]]:
    """The whole model: of each stage the newest replica, or the average of those that count.

    Args:
        parts: of all stages, several of a stage or one; of several cuts of the run the one of the newest part counts.
        take: ``newest`` or ``average``.

    Returns:
        The model, whose round is that of its oldest stage, and what was taken of each stage.

    Raises:
        ConfigError: a stage is missing.
        MismatchError: parts of different runs.
        UsageError: see ``check_take``.
    """
    check_take(take)
    ensure_one_run([part.replica for part in parts])
    # A run may have gone on with another cut: what is left of the old ones is older.
    newest = max(parts, key=lambda part: (part.replica.round, part.cut))
    num_stages = newest.num_stages
    parts = [
        part
        for part in parts
        if (part.cut, part.num_stages) == (newest.cut, num_stages) or (newest.cut and not part.stage)
    ]
    by_stage: dict[int, list[Replica]] = {}
    for part in parts:
        by_stage.setdefault(part.stage, []).append(part.replica)
    missing = [stage for stage in range(num_stages + 1) if stage not in by_stage]
    if missing:
        raise ConfigError(
            f"There is no whole model: nobody has saved {' nor '.join(name_of(stage) for stage in missing)}.",
            hint="Give the folders of the workers that held them.",
        )
    chosen = {stage: _one_of(by_stage[stage], take) for stage in sorted(by_stage)}
    weights = {name: value for one in chosen.values() for name, value in one.weights.items()}
    round_ = min(one.round for one in chosen.values())
    run = next((part.replica.run for part in parts if part.replica.run), "")
    return Replica("stages", run, round_, lambda: weights), chosen


def told(chosen: Mapping[int, Chosen]) -> str:
    """What the model is made of; rounds are told if they differ."""
    rounds = {one.round for one in chosen.values()}
    text = f"{len(chosen) - 1} stages and the head"
    if max(len(one.sources) for one in chosen.values()) > 1:
        text += ", averages of replicas"
    if len(rounds) > 1:
        text += ", of rounds " + ", ".join(f"{one.round} ({name_of(stage)})" for stage, one in chosen.items())
    return text


def _one_of(replicas: Sequence[Replica], take: str) -> Chosen:
    if take == NEWEST:  # the others need not even be read
        replicas = [max(replicas, key=lambda replica: replica.round)]
    return choose(survey(replicas, None), take)
