"""What of the configuration goes together with what; each refusal names key, value and what to do.

Ranges of single values are with the values, in ``config.method`` and ``config.pipeline``.
"""

from decentral.config.method import MethodSection
from decentral.config.names import ALL_REDUCE, Family, names_of
from decentral.config.pipeline import PipelineSection
from decentral.outer.gamma import gamma_range
from decentral.pipeline.cut import FEWEST_STAGES

#: Keys that are without effect on all methods but these.
_ONLY_FOR = {
    "nesterov": (Family.DILOCO,),
    "merge": (Family.DILOCO, Family.SPARSELOCO),
    "liars": (Family.DILOCO, Family.SPARSELOCO),
    "audits": ALL_REDUCE,
    "weight_by": ALL_REDUCE,
    "quorum": ALL_REDUCE,
    "quorum_grace": ALL_REDUCE,
    "gamma": (Family.GOSSIP,),
    "group_size": (Family.GOSSIP,),
    "schedule": (Family.GOSSIP,),
    "events_per_round": (Family.GOSSIP,),
    "anchor_codec": (Family.GOSSIP,),
    "pull_codec": (Family.GOSSIP,),
    "momentum_every": (Family.SERVER,),
    "momentum_share": (Family.SERVER,),
    "dylu": (Family.SERVER,),
}
#: Merges that some of the members cannot spoil.
ROBUST = ("median", "trimmed", "centred", "nearest")
#: Whose steps no common reference of all workers can follow, and why.
_NOT_EF21 = {
    Family.EAGER: "its step goes by the mean of this round's own and the last round's other contributions",
    Family.GOSSIP: "groups change from round to round",
    Family.SERVER: "contributions are taken one by one",
}


def check(method: MethodSection) -> MethodSection:
    """The section, if it makes sense together.

    Raises:
        ValueError: the first that was found, in words.
    """
    _fits_in_a_round(method)
    _is_of_the_method(method)
    match method.family:
        case Family.EAGER:
            _eager_fits(method)
        case Family.SPARSELOCO:
            _is_sparseloco(method)
        case Family.GOSSIP:
            _gossips(method)
        case Family.SERVER:
            _is_served(method)
    _feedback_fits(method)
    _merge_fits(method)
    return method


def check_liars(method: MethodSection, min_workers: int) -> None:
    """Refuse more liars than a round's members can outvote.

    Raises:
        ValueError: says how many workers that takes.
    """
    fewest, key = (method.quorum, "method.quorum") if method.quorum else (min_workers, "run.min_workers")
    if method.liars and fewest < 2 * method.liars + 1:
        raise ValueError(
            f"method.liars is {method.liars}, which takes rounds of at least {2 * method.liars + 1} workers to outvote "
            f"them, but {key} is {fewest}: set it to that, or fewer liars"
        )


def check_rollback(method: MethodSection, pipeline: PipelineSection) -> None:
    """Refuse a rollback where workers have no anchor in common, or none that one of them can validate.

    Raises:
        ValueError: says why.
    """
    if pipeline.stages:
        raise ValueError(
            "run.on_ruin is rollback, but in a pipeline no worker has the whole model, whose loss would tell: set "
            "run.on_ruin=stop"
        )
    if method.family not in ALL_REDUCE:
        raise ValueError(
            f"run.on_ruin is rollback, which needs one anchor that all workers have in common, and with {method.name} "
            f"each has its own: set run.on_ruin=stop, or take a method of {', '.join(names_of(*ALL_REDUCE))}"
        )


def check_pipeline(pipeline: PipelineSection) -> PipelineSection:
    """The section, if it makes a pipeline.

    Raises:
        ValueError: the first that was found, in words.
    """
    if not pipeline.stages:
        for key, field in type(pipeline).model_fields.items():
            if (value := getattr(pipeline, key)) != field.default:
                raise ValueError(
                    f"pipeline.{key} is {value}, but pipeline.stages is 0, with which every worker has the whole "
                    "model: set pipeline.stages (or --stages) to how many parts it is cut into"
                )
        return pipeline
    if pipeline.stages == "auto":
        return _changes(pipeline)
    least = 1 if pipeline.recovery == "auto" else FEWEST_STAGES[pipeline.recovery]
    if pipeline.stages < least:
        raise ValueError(
            f"pipeline.recovery is {pipeline.recovery}, which needs at least {least} stages, but pipeline.stages is "
            f"{pipeline.stages}: take more stages, or another recovery (auto takes the best that is possible)"
        )
    return _flows(pipeline)


def _changes(pipeline: PipelineSection) -> PipelineSection:
    """Refuse what a cut that changes cannot have."""
    if pipeline.recovery not in ("auto", "checkpoint"):
        raise ValueError(
            f"pipeline.recovery is {pipeline.recovery}, which needs equal stages, but pipeline.stages is auto: leave "
            "it out, and lost stages come back from checkpoints"
        )
    if pipeline.replicas > 1:
        raise ValueError(
            f"pipeline.replicas is {pipeline.replicas}, but with pipeline.stages = auto every stage has one holder: "
            "leave it out, or say how many stages there are"
        )
    return _flows(pipeline)


def _flows(pipeline: PipelineSection) -> PipelineSection:
    """Refuse micro-batches that do not flow."""
    if pipeline.in_flight > pipeline.microbatches:
        raise ValueError(
            f"pipeline.in_flight is {pipeline.in_flight}, which must be at most pipeline.microbatches "
            f"({pipeline.microbatches}): one batch is under way at a time; 0 stands for all of it"
        )
    if pipeline.codec.startswith(("topk", "sign", "int2")):
        raise ValueError(
            f"pipeline.codec is {pipeline.codec}, which is for changes of parameters: activations would be lost in it; "
            "take bf16, int8-b128 or fp32"
        )
    return pipeline


def _default(method: MethodSection, key: str) -> object:
    return type(method).model_fields[key].default


def _fits_in_a_round(method: MethodSection) -> None:
    steps, fragments, delay = method.inner_steps, method.fragments, method.delay_steps
    if isinstance(fragments, int) and fragments > steps:
        raise ValueError(
            f"method.fragments is {fragments}, which must be at most method.inner_steps ({steps}): one is sent after "
            "an inner step; take fewer, or more steps"
        )
    if isinstance(delay, int) and isinstance(fragments, int) and delay >= steps // fragments:
        raise ValueError(
            f"method.delay_steps is {delay}, which must be below method.inner_steps / method.fragments = "
            f"{steps} / {fragments}, rounded down {steps // fragments}: the next fragment is sent then; "
            "lower it, or take fewer fragments or more steps"
        )
    if isinstance(delay, int) and delay >= steps:  # with how many fragments, the model has to tell
        raise ValueError(
            f"method.delay_steps is {delay}, which must be below method.inner_steps ({steps}): lower it, or take "
            "more steps"
        )


def _is_of_the_method(method: MethodSection) -> None:
    for key, families in _ONLY_FOR.items():
        value = getattr(method, key)
        if method.family not in families and value != _default(method, key):
            raise ValueError(
                f"method.{key} is {str(value).lower()}, which only method.name = {' or '.join(names_of(*families))} "
                f"has a use for, not {method.name}: leave it out, or take another method"
            )


def _feedback_fits(method: MethodSection) -> None:
    if method.feedback in ("ef21", "none") and method.feedback_decay != 1:
        raise ValueError(
            f"method.feedback_decay is {method.feedback_decay:g}, which only method.feedback = ef14 has a use for, "
            f"not {method.feedback}"
        )
    if method.feedback == "ef21" and method.family in _NOT_EF21:
        raise ValueError(
            f"method.feedback is ef21, which {method.name} has no use for: {_NOT_EF21[method.family]}, and no common "
            "reference follows that; set method.feedback=ef14"
        )
    if method.feedback == "ef21" and method.mean_over == "senders":
        raise ValueError(
            "method.mean_over is senders, which method.feedback = ef21 has no use for: "
            "its common reference is the mean over all members"
        )
    if method.mean_over == "senders" and not method.codec.startswith(("topk", "fp32")):
        raise ValueError(
            f"method.mean_over is senders, which is for codecs that leave values out (topk...), not {method.codec}: "
            "a value that it rounds to 0 would count as not sent; set method.mean_over=members"
        )


def _merge_fits(method: MethodSection) -> None:
    if method.quorum_grace and not method.quorum:
        raise ValueError(
            f"method.quorum_grace is {method.quorum_grace:g}, but method.quorum is 0, with which a round waits for "
            "everybody: set method.quorum to how many it must wait for"
        )
    if 0 < method.bound < 1:
        raise ValueError(
            f"method.bound is {method.bound:g}, which must be at least 1, or 0 for no bounds: below, what is usual "
            "would be cut down"
        )
    if method.merge in ("trimmed", "nearest") and not method.liars:
        raise ValueError(
            f"method.merge is {method.merge}, but method.liars is 0, with which it is a plain mean: set "
            "method.liars to how many workers may lie"
        )
    if method.liars and method.merge not in ROBUST:
        raise ValueError(
            f"method.liars is {method.liars}, which only method.merge = {', '.join(ROBUST)} has a use for, not "
            f"{method.merge}: leave it out, or take another merge"
        )
    for key, value, instead in (("mean_over", "senders", "members"), ("feedback", "ef21", "ef14")):
        if method.merge != "mean" and getattr(method, key) == value:
            raise ValueError(
                f"method.merge is {method.merge}, but method.{key} is {value}, which needs the plain mean of the "
                f"contributions: set method.{key}={instead}"
            )


def _eager_fits(method: MethodSection) -> None:
    if method.delay_steps != 0:
        raise ValueError(
            f"method.delay_steps is {method.delay_steps}, which must be 0 for {method.name}: an exchange has the whole "
            "next round already; leave it out"
        )
    if method.mix_alpha not in ("auto", 0):
        raise ValueError(
            f"method.mix_alpha is {method.mix_alpha:g}, which must be 0 for {method.name}: a worker goes on from its "
            "own share of the step, which takes the place of mixing; leave it out"
        )


def _is_sparseloco(method: MethodSection) -> None:
    if method.outer_momentum:
        raise ValueError(
            f"method.outer_momentum is {method.outer_momentum:g}, which must be 0 for {method.name}: "
            "its residual, which method.feedback_decay lets fade, stands in for momentum"
        )
    if method.feedback not in ("auto", "ef14"):
        raise ValueError(f"method.feedback is {method.feedback}, but {method.name} is made of ef14: leave it out")


def _is_served(method: MethodSection) -> None:
    if method.mean_over == "senders":
        raise ValueError(
            f"method.mean_over is senders, but {method.name} takes contributions one by one: "
            "set method.mean_over=members"
        )
    if method.momentum_share * method.momentum_every > 1:
        raise ValueError(
            f"method.momentum_share is {method.momentum_share:g}, which must be at most 1 / method.momentum_every = "
            f"1 / {method.momentum_every}: more momentum would be given than there is"
        )


def _gossips(method: MethodSection) -> None:
    if method.anchor_codec.startswith(("topk", "sign", "int2")):
        raise ValueError(
            f"method.anchor_codec is {method.anchor_codec}, which is for changes of parameters: "
            "an anchor would be lost in it"
        )
    if method.schedule == "rounds":
        _gossips_in_rounds(method)
    else:
        _gossips_at_random(method)


def _gossips_in_rounds(method: MethodSection) -> None:
    if method.events_per_round != 1:
        raise ValueError(
            f"method.events_per_round is {method.events_per_round:g}, which only method.schedule = poisson "
            "has a use for"
        )
    try:
        low, high = gamma_range(method.outer_momentum, method.group_size)
    except ValueError as err:
        raise ValueError(
            f"method.outer_momentum is {method.outer_momentum:g}, with which no method.gamma keeps the replicas "
            f"together in groups of n = {method.group_size} (method.group_size); the paper's is 0.5"
        ) from err
    if not low < method.gamma < high:
        raise ValueError(
            f"method.gamma is {method.gamma:g}, which must be above {low:.4g} and below {high:.4g} for groups of "
            f"n = {method.group_size} (method.group_size) with alpha = {method.outer_momentum:g} "
            "(method.outer_momentum): outside, the spread between replicas may grow"
        )


def _gossips_at_random(method: MethodSection) -> None:
    if method.codec != _default(method, "codec"):
        raise ValueError(
            f"method.codec is {method.codec}, which method.schedule = poisson has no use for: "
            "anchors are swapped and no pseudo-gradients; see method.anchor_codec and method.pull_codec"
        )
    if method.group_size != 2:
        raise ValueError(
            f"method.group_size is {method.group_size}, which must be 2 with method.schedule = poisson: "
            "its swaps are between two workers"
        )
    if method.gamma > 1:
        raise ValueError(
            f"method.gamma is {method.gamma:g}, which must be at most 1 with method.schedule = poisson: "
            "it is the share of the way to the mean that a swap goes at once"
        )
