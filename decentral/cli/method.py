"""The configuration of the method: how workers come to agree, the presets, and what goes together with what.

Here are names, types, ranges and defaults; which preset applies is up to ``cli.settings``, what becomes of the values
to ``cli.compose``. It imports no torch.
"""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from decentral.cli.section import Section
from decentral.outer.gamma import gamma_range

Method = Literal["diloco", "sparseloco", "noloco"]
METHODS: tuple[Method, ...] = get_args(Method)

#: Values of ``method`` that belong together; chosen by ``method.preset``, each overridden by its own key. Each method
#: has a preset of its name, for which stating that name alone stands.
PRESETS: dict[str, dict[str, Any]] = {
    # Runs of minutes: plain averaging, often. Chosen by measurement, see docs/benchmarks/quality.md.
    "short": {"name": "diloco", "inner_steps": 3, "outer_lr": 1.0, "outer_momentum": 0.0},
    # arXiv 2311.08105: runs of at least some tens of thousands of steps.
    "diloco": {"name": "diloco", "inner_steps": 500, "outer_lr": 0.7, "outer_momentum": 0.9},
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
}
_SHORT = PRESETS["short"]
_NOLOCO = PRESETS["noloco"]

#: Keys that are without effect on all methods but one.
_ONLY_FOR = {
    "nesterov": "diloco",
    "gamma": "noloco",
    "group_size": "noloco",
    "schedule": "noloco",
    "events_per_round": "noloco",
    "anchor_codec": "noloco",
    "pull_codec": "noloco",
}

_CODEC = "the name of a codec, such as fp32 or int8-b128; `decentral codecs` lists them"
_AUTO_CODEC = "auto, or the name of a codec; `decentral codecs` lists them"

AutoCodec = Annotated[str, Field(pattern=r"^[a-z0-9.-]{1,22}$", description=_AUTO_CODEC)]


class MethodSection(Section):
    """How workers come to agree."""

    name: Method = "diloco"
    inner_steps: int = Field(default=_SHORT["inner_steps"], ge=1, le=1_000_000)
    outer_lr: float = Field(default=_SHORT["outer_lr"], gt=0, le=10)
    """NoLoCo's beta."""
    outer_momentum: float = Field(default=_SHORT["outer_momentum"], ge=0, lt=1)
    """NoLoCo's alpha."""
    nesterov: bool = True
    """Whether DiLoCo's momentum looks ahead."""
    gamma: float = _NOLOCO["gamma"]
    """Strength of the pull towards the mean of the group's anchors; its range depends on others."""
    group_size: int = Field(default=_NOLOCO["group_size"], ge=2, le=64)
    schedule: Literal["rounds", "poisson"] = "rounds"
    """Whether groups mix at the end of rounds, or pairs at random moments."""
    events_per_round: float = Field(default=1.0, gt=0, le=100)
    """Swaps that a worker starts in the time of a round."""
    fragments: int = Field(default=1, ge=1, le=1024)
    delay_steps: int = Field(default=0, ge=0, le=1_000_000)
    mix_alpha: float = Field(default=0.0, ge=0, le=1)
    codec: str = Field(default="int8-b128", pattern=r"^[a-z0-9.-]{1,22}$", description=_CODEC)
    """Of what a worker sends to a reducer or to its host."""
    mean_codec: AutoCodec = "auto"
    """Of the mean that comes back; ``auto`` goes by ``codec``."""
    anchor_codec: AutoCodec = "auto"
    """Of the anchor that a guest sends its host."""
    pull_codec: AutoCodec = "auto"
    """Of the difference between the group's mean anchor and the guest's, which the host sends back."""
    feedback: Literal["ef14", "ef21", "none"] = "ef14"
    """What becomes of the codecs' errors."""
    feedback_decay: float = Field(default=1.0, gt=0, le=1)
    """What is kept of the residual from round to round."""
    mean_over: Literal["members", "senders"] = "members"
    """Whom a value's mean is over."""

    @model_validator(mode="after")
    def _fits_in_a_round(self) -> Self:
        if self.fragments > self.inner_steps:
            raise ValueError(
                f"method.fragments is {self.fragments}, which must be at most method.inner_steps ({self.inner_steps})"
            )
        if self.delay_steps >= self.inner_steps:
            raise ValueError(
                f"method.delay_steps is {self.delay_steps}, which must be below method.inner_steps ({self.inner_steps})"
            )
        return self

    @model_validator(mode="after")
    def _is_of_the_method(self) -> Self:
        for key, name in _ONLY_FOR.items():
            value = getattr(self, key)
            if self.name != name and value != type(self).model_fields[key].default:
                raise ValueError(
                    f"method.{key} is {str(value).lower()}, which only method.name = {name} has a use for, "
                    f"not {self.name}"
                )
        if self.name == "sparseloco" and self.outer_momentum:
            raise ValueError(
                f"method.outer_momentum is {self.outer_momentum:g}, which must be 0 for sparseloco: "
                "its residual, which method.feedback_decay lets fade, stands in for momentum"
            )
        if self.name == "sparseloco" and self.feedback != "ef14":
            raise ValueError(f"method.feedback is {self.feedback}, but sparseloco is made of ef14")
        return self

    @model_validator(mode="after")
    def _feedback_fits(self) -> Self:
        if self.feedback != "ef14" and self.feedback_decay != 1:
            raise ValueError(
                f"method.feedback_decay is {self.feedback_decay:g}, which only method.feedback = ef14 has a use for, "
                f"not {self.feedback}"
            )
        if self.feedback == "ef21" and self.mean_over == "senders":
            raise ValueError(
                "method.mean_over is senders, which method.feedback = ef21 has no use for: "
                "its common reference is the mean over all members"
            )
        if self.mean_over == "senders" and not self.codec.startswith(("topk", "fp32")):
            raise ValueError(
                f"method.mean_over is senders, which is for codecs that leave values out (topk...), not {self.codec}: "
                "a value that it rounds to 0 would count as not sent; set method.mean_over=members"
            )
        return self

    @model_validator(mode="after")
    def _gossips_well(self) -> Self:
        if self.name != "noloco":
            return self
        if self.schedule == "rounds":
            self._pulls_together()
        if self.feedback == "ef21":
            raise ValueError(
                "method.feedback is ef21, which noloco has no use for: its common reference is one of all workers, "
                "and groups change from round to round"
            )
        if self.anchor_codec.startswith(("topk", "sign")):
            raise ValueError(
                f"method.anchor_codec is {self.anchor_codec}, which is for changes of parameters: "
                "an anchor would be lost in it"
            )
        if self.schedule == "rounds" and self.events_per_round != 1:
            raise ValueError(
                f"method.events_per_round is {self.events_per_round:g}, which only method.schedule = poisson "
                "has a use for"
            )
        if self.schedule == "poisson" and self.codec != MethodSection.model_fields["codec"].default:
            raise ValueError(
                f"method.codec is {self.codec}, which method.schedule = poisson has no use for: "
                "anchors are swapped and no pseudo-gradients; see method.anchor_codec and method.pull_codec"
            )
        if self.schedule == "poisson" and self.group_size != 2:
            raise ValueError(
                f"method.group_size is {self.group_size}, which must be 2 with method.schedule = poisson: "
                "its swaps are between two workers"
            )
        if self.schedule == "poisson" and self.gamma > 1:
            raise ValueError(
                f"method.gamma is {self.gamma:g}, which must be at most 1 with method.schedule = poisson: "
                "it is the share of the way to the mean that a swap goes at once"
            )
        return self

    def _pulls_together(self) -> None:
        """Raises ValueError if a gamma in rounds would let the replicas drift apart."""
        try:
            low, high = gamma_range(self.outer_momentum, self.group_size)
        except ValueError as err:
            raise ValueError(
                f"method.outer_momentum is {self.outer_momentum:g}, with which no method.gamma keeps the replicas "
                f"together in groups of n = {self.group_size} (method.group_size); the paper's is 0.5"
            ) from err
        if not low < self.gamma < high:
            raise ValueError(
                f"method.gamma is {self.gamma:g}, which must be above {low:.4g} and below {high:.4g} for groups of "
                f"n = {self.group_size} (method.group_size) with alpha = {self.outer_momentum:g} "
                "(method.outer_momentum): outside, the spread between replicas may grow"
            )
