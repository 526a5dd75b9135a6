"""The configuration of the method: how workers come to agree.

Here are names, types, ranges and defaults; what the name of a method stands for is in ``config.names``, what goes
together with what in ``config.rules``. What becomes of the values is up to ``run.options``. It imports no torch.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Field, model_validator

from decentral.config.names import METHODS, Family, MethodName
from decentral.config.section import Section

_NAME: Final = "local-sgd"
_DEFAULTS = METHODS[_NAME].defaults
#: The middle between what was trained since and what was agreed (Streaming DiLoCo, section 4 of arXiv 2501.18512).
_ALPHA_WITH_OVERLAP = 0.5

_CODEC = "the name of a codec, such as fp32 or int8-b128; `decentral codecs` lists them"
_AUTO_CODEC = "auto, or the name of a codec; `decentral codecs` lists them"

AutoCodec = Annotated[str, Field(pattern=r"^[a-z0-9.-]{1,22}$", description=_AUTO_CODEC)]
_Fragments = Annotated[int, Field(ge=1, le=1024)]
_Steps = Annotated[int, Field(ge=0, le=1_000_000)]
_Share = Annotated[float, Field(ge=0, le=1)]


class MethodSection(Section):
    """How workers come to agree. The defaults are those of ``name``, and for the rest as below."""

    name: MethodName = _NAME
    inner_steps: int = Field(default=_DEFAULTS["inner_steps"], ge=1, le=1_000_000)
    outer_lr: float = Field(default=_DEFAULTS["outer_lr"], gt=0, le=10)
    """NoLoCo's beta."""
    outer_momentum: float = Field(default=_DEFAULTS["outer_momentum"], ge=0, lt=1)
    """NoLoCo's alpha; the beta of delayed Nesterov."""
    nesterov: bool = True
    """Whether DiLoCo's momentum looks ahead."""
    fragments: _Fragments | Literal["auto", "paper"] = Field(
        default=1, description="a whole number, at least 1 and at most 1024, or auto, or paper"
    )
    """Parts of the model with a sync each; ``auto``: a layer each, ``paper``: three layers each."""
    fragment_pattern: Literal["strided", "sequential"] = "strided"
    """How layers are dealt out to fragments."""
    delay_steps: _Steps | Literal["auto"] = Field(
        default=0, description="a whole number, at least 0 and at most 1000000, or auto"
    )
    """Inner steps under which an exchange is hidden; ``auto``: as many as it takes."""
    mix_alpha: _Share | Literal["auto"] = Field(
        default="auto", description="a number, at least 0 and at most 1, or auto"
    )
    """Share of the local parameters kept when a fragment is applied."""
    merge: Literal["mean", "rda", "median", "trimmed", "centred", "nearest"] = "mean"
    """What is made of the contributions: their mean; direction and length averaged apart; or what some cannot spoil."""
    liars: int = Field(default=0, ge=0, le=2047)
    """So many workers may bring anything, f; of merges that some cannot spoil."""
    bound: float = Field(default=2.5, ge=0, le=1000)
    """So many times what is usual one worker's part counts at most; 0 for no bounds. More of noloco."""
    audits: float = Field(default=0.1, ge=0, le=16)
    """So many shards of a round workers do over, all together, on average, to find reducers that lie; 0 for none."""
    weight_by: Literal["tokens", "token-rate", "equal"] = "tokens"
    """What a contribution counts for."""
    quorum: int = Field(default=0, ge=0, le=4096)
    """Workers that a round waits for; 0 for everybody."""
    quorum_grace: float = Field(default=0.0, ge=0, le=3600)
    """Seconds in which others still come in after that."""
    momentum_every: int = Field(default=0, ge=0, le=4096)
    """Contributions between two steps of delayed Nesterov's momentum; 0 for the number of workers."""
    momentum_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the momentum that every contribution takes along, c."""
    dylu: bool = False
    """Whether slow workers take fewer inner steps."""
    gamma: float = 0.7
    """Strength of the pull towards the mean of the group's anchors; its range depends on others."""
    group_size: int = Field(default=2, ge=2, le=64)
    schedule: Literal["rounds", "poisson"] = "rounds"
    """Whether groups mix at the end of rounds, or pairs at random moments."""
    events_per_round: float = Field(default=1.0, gt=0, le=100)
    """Swaps that a worker starts in the time of a round."""
    codec: str = Field(default="int8-b128", pattern=r"^[a-z0-9.-]{1,22}$", description=_CODEC)
    """Of what a worker sends to a reducer, to its host or to the server."""
    mean_codec: AutoCodec = "auto"
    """Of the mean that comes back, or of a server's changes; ``auto`` goes by ``codec``."""
    anchor_codec: AutoCodec = "auto"
    """Of the anchor that a guest sends its host."""
    pull_codec: AutoCodec = "auto"
    """Of the difference between the group's mean anchor and the guest's, which the host sends back."""
    feedback: Literal["auto", "ef14", "ef21", "none"] = "auto"
    """What becomes of the codecs' errors; ``auto``: ``ef14`` if one sends less than eight bits a value."""
    feedback_decay: float = Field(default=1.0, gt=0, le=1)
    """What is kept of the residual from round to round."""
    mean_over: Literal["members", "senders"] = "members"
    """Whom a value's mean is over."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        """The defaults of the name, below what is given; of a wrong name the check of all values tells."""
        if not isinstance(given, Mapping) or given.get("name", _NAME) not in get_args(MethodName):
            return given
        return {**METHODS[given.get("name", _NAME)].defaults, **given}

    @property
    def family(self) -> Family:
        """Kind of exchange and outer rule."""
        return METHODS[self.name].family

    @property
    def alpha(self) -> float:
        """``mix_alpha``, or what it is if it is left to us: local work under an overlap is not thrown away."""
        if self.mix_alpha != "auto":
            return self.mix_alpha
        return 0.0 if self.delay_steps == 0 or self.family is Family.EAGER else _ALPHA_WITH_OVERLAP
