"""Which codec serves for what if the user does not say."""

from typing import Final

from decentral.codecs.codec import Codec, bits_per_value, make_codec

#: Signs alone would be too coarse for the mean, of which there is one and not one of each member.
_MEAN_OF_SIGNS: Final = "int4-b128"
#: A mean has the values of all members' choices: four times as many, finer.
_MEAN_OF_TOPK: Final = {"0.4": "topk1.5-8bit", "0.8": "topk3-8bit"}
_MEAN_OF_DENSEST_TOPK: Final = "topk6-8bit"

#: What codecs of so many bits a value leave out is not worth a residual: the loss is the same with and without
#: (docs/benchmarks/codec-quality.md).
_BITS_WITHOUT_FEEDBACK: Final = 8
_MANY: Final = 1 << 20

#: Anchors are parameters, not changes of them: what is lost of one is lost against its whole size. With four bits
#: replicas stay eight times further apart (docs/benchmarks/gossip-quality.md).
_ANCHOR: Final = "int8-b128"
#: A difference, and what is lost of it leaves the mean of both sides where it was. Four bits cost as
#: little as 32, signs 0.4 % of the loss.
_PULL: Final = "int4-b128"


def default_mean_codec(codec: Codec) -> Codec:
    """For the mean of contributions in ``codec``: the same, but finer for signs, and more values if these are few."""
    family, _, _ = codec.name.partition("-")
    if family == "sign":
        return make_codec(_MEAN_OF_SIGNS)
    if family.startswith("topk"):
        return make_codec(_MEAN_OF_TOPK.get(family.removeprefix("topk"), _MEAN_OF_DENSEST_TOPK))
    return codec


def default_anchor_codec() -> Codec:
    """For the anchor that a guest sends its host."""
    return make_codec(_ANCHOR)


def default_pull_codec() -> Codec:
    """For the difference between the group's mean anchor and the guest's, which the host sends back."""
    return make_codec(_PULL)


def needs_feedback(codec: Codec) -> bool:
    """Whether what it leaves out is much enough to be kept and sent later, at the price of two values a parameter."""
    return bits_per_value(codec, _MANY) < _BITS_WITHOUT_FEEDBACK
