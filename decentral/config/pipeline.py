"""The configuration of a pipeline: a model cut into stages, and who holds which.

Here are names, types, ranges and defaults; what goes together with what is in ``config.rules``, what becomes of the
values in ``run.options``. It imports no torch.
"""

from typing import Annotated, Final, Literal

from pydantic import Field

from decentral.config.section import Section
from decentral.errors import ConfigError, MismatchError

_CODEC = "the name of a codec for values, such as bf16, int8-b128 or fp32; `decentral codecs` lists them"

STAGE = r"^(|spare|\d{1,4}(-\d{1,4})?)$"
STAGE_IN_WORDS = "a stage such as 2, a range such as 1-3 (0 is the head), or spare"
_SPARE: Final = "spare"


_Stages = Annotated[int, Field(ge=0, le=256)]


class PipelineSection(Section):
    """How a model is cut into stages, and how micro-batches flow through them."""

    stages: _Stages | Literal["auto"] = Field(
        default=0, description="a whole number, at least 0 and at most 256, or auto"
    )
    """Parts that the blocks are cut into, beside the head; ``auto``: as many as there are machines for them, cut anew
    as these come, go, and change their pace; 0: every worker has the whole model."""
    replicas: int = Field(default=0, ge=0, le=4096)
    """Holders of each stage, the head included; who comes after that waits as a spare. 0 for no limit."""
    microbatches: int = Field(default=8, ge=1, le=4096)
    """Parts of a head's batch, which flow through the stages one after the other."""
    in_flight: int = Field(default=0, ge=0, le=4096)
    """Micro-batches that a head has under way at a time; 0 for all of a batch."""
    codec: str = Field(default="bf16", pattern=r"^[a-z0-9.-]{1,22}$", description=_CODEC)
    """Of activations and their gradients."""
    routing: Literal["permutation", "speed"] = "permutation"
    """To which replica of a stage a micro-batch goes: at random, evenly, or by measured speed and queue."""
    recovery: Literal["auto", "checkfree+", "checkfree", "checkpoint"] = "auto"
    """How a stage comes back that nobody holds any more; ``auto``: the first of the others that the cut allows."""
    norm: Literal["l2", "squared"] = "l2"
    """Of the neighbours' gradients, by which they are weighed."""
    lr_boost: float = Field(default=1.1, gt=0, le=10)
    """Factor of a healed stage's learning rate."""
    lr_boost_steps: int = Field(default=100, ge=0, le=10_000_000)
    """Inner steps for which it holds."""


def check_founder(stage: str, num_stages: int | Literal["auto"]) -> None:
    """Refuse a founder that insists on what it cannot have.

    Raises:
        ConfigError: there is no pipeline, there is no such stage, or it would be a spare.
    """
    if not num_stages:
        raise ConfigError(
            f"worker.stage is {stage}, but the swarm has no pipeline: every worker has the whole model.",
            hint="Cut the model with --stages, or leave --stage out.",
        )
    if stages_asked(stage, num_stages) == _SPARE:
        raise ConfigError(
            "worker.stage is spare, but whoever founds a swarm is alone in it: somebody must have the head.",
            hint="Leave --stage out to found with the head, and give it to a worker that joins.",
        )


def check_joiner(stage: str, num_stages: int | Literal["auto"]) -> None:
    """Refuse a joiner that insists on a stage where there are none, or none of that number.

    Raises:
        MismatchError: the swarm has no pipeline.
        ConfigError: there is no such stage.
    """
    if stage and not num_stages:
        raise MismatchError(
            f"worker.stage is {stage}, but the swarm has no pipeline: every worker has the whole model.",
            hint="Leave --stage out, or found a pipeline of your own with --new --stages.",
        )
    stages_asked(stage, num_stages)


def stages_asked(stage: str, num_stages: int | Literal["auto"]) -> tuple[int, ...] | Literal["spare"]:
    """What ``worker.stage`` insists on.

    Args:
        stage: as in the configuration: ``2``, ``1-3``, ``spare``, or nothing.
        num_stages: beside the head, or ``auto``.

    Returns:
        The stages, or ``spare``; none to be given what is needed most.

    Raises:
        ConfigError: there is no such stage.
    """
    if not stage:
        return ()
    if stage == _SPARE:
        return _SPARE
    if num_stages == "auto":
        raise ConfigError(
            f"worker.stage is {stage}, but pipeline.stages is auto: which blocks a worker holds changes.",
            hint="Leave --stage out, or take spare to hold only what is lost.",
        )
    first, _, last = stage.partition("-")
    low, high = int(first), int(last or first)
    if low > high:
        raise ConfigError(f"worker.stage is {stage}, which ends before it begins.", hint=f"Write {high}-{low}.")
    if high > num_stages:
        raise ConfigError(
            f"worker.stage is {stage}, but the pipeline has the stages 0 (the head) to {num_stages}.",
            hint="Leave --stage out to be given the stage that needs a worker most.",
        )
    return tuple(range(low, high + 1))
