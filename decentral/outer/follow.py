"""Following: somebody else takes the outer steps, this worker goes on from the anchor that it is told.

Legend: N = values in the fragment.
"""

from dataclasses import dataclass

from torch import Tensor

from decentral.outer.rule import Mixed, OuterRule, OuterState, check_shapes


@dataclass(frozen=True, slots=True)
class Follow(OuterRule):
    """The worker's side of an outer rule that a server runs (see ``exchange.server.server``): a <- the server's anchor.

    Source: Asynchronous Local-SGD (arXiv 2401.09135): a worker fetches the server's parameters and begins anew.
    """

    def step(self, anchor_N: Tensor, mixed: Mixed, state: OuterState) -> tuple[Tensor, OuterState]:
        """The server's anchor [N], which is ``mixed.anchor_N`` itself, and the next count.

        Raises:
            ValueError: there is none, or tensors differ in shape.
        """
        check_shapes(self, anchor_N, mixed, state)
        if mixed.anchor_N is None:
            raise ValueError("there is no anchor to follow")
        return mixed.anchor_N, OuterState(num_steps=state.num_steps + 1)
