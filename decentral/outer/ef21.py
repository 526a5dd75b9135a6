"""EF21: members send how their pseudo-gradients changed; here the mean is put together again for another rule.

Legend: N = values in the fragment.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from decentral.outer.rule import Mixed, OuterRule, OuterState


@dataclass(frozen=True, slots=True)
class Ef21(OuterRule):
    """Error feedback on the difference, in front of any outer rule.

    Worker i keeps a reference g_i of its pseudo-gradient d_i (``codecs.feedback.Ef21``), everybody their mean g::

        c_i <- C(d_i - g_i)                  sent
        g_i <- g_i + c_i
        g   <- g + mean_i(c_i)
        a, state <- rule.step(a, g, state)

    C is exact on what does not change, so the error vanishes as pseudo-gradients settle down; that of ordinary error
    feedback does not.

    **Who comes and goes.** g is the mean of the g_i of certain members, ``state.counted``. With one more or one
    less it would not be: nobody knows a leaver's g_i, and a mean that still has it would stay wrong for good, because
    later rounds send changes only. So a round whose members are not exactly those counted starts afresh: all take
    their g_i as 0 and send C(d_i), and g is the mean of that. A round in which somebody's part came too late counts
    nobody, hence the next one starts afresh. A member that has lost its g_i, say by a restart, listens for one round.

    Args:
        rule: what takes the outer step.

    Source: EF21 (Richtarik et al. 2021) and EF21-W (arXiv 2402.10774), algorithm with the plain mean.
    Differences: pseudo-gradients in place of gradients, any outer rule in place of gradient descent, and the fresh
    start when members change, of which those papers, with their fixed set of workers, have no need.
    """

    rule: OuterRule

    @property
    def buffers(self) -> tuple[str, ...]:
        """Those of the rule and the common reference, which comes first."""
        return ("reference", *self.rule.buffers)

    def step(self, anchor_N: Tensor, mixed: Mixed, state: OuterState) -> tuple[Tensor, OuterState]:
        """The rule's outer step along the mean, which is put together first where ``mixed`` is relative."""
        reference_N, *rest_N = state.buffers_N
        mean_N = reference_N + mixed.delta_N if mixed.relative else mixed.delta_N.clone()
        inner = replace(state, buffers_N=tuple(rest_N))
        next_N, inner = self.rule.step(anchor_N, replace(mixed, delta_N=mean_N), inner)
        counted = mixed.members if mixed.whole else ()
        return next_N, replace(inner, buffers_N=(mean_N, *inner.buffers_N), counted=counted)
