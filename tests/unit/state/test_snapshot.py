import torch

from decentral.outer.rule import OuterState
from decentral.state.snapshot import FragmentState, Snapshot, combined_digest, from_bytes, to_bytes


def state(anchor: float = 1.0, momentum: float = 2.0, num_steps: int = 3, round_: int = 4) -> FragmentState:
    return FragmentState.of(round_, torch.full((5,), anchor), OuterState((torch.full((5,), momentum),), num_steps))


def test_the_digest_covers_what_the_next_outer_step_depends_on() -> None:
    digests = [one.digest for one in (state(), state(anchor=1.5), state(momentum=2.5), state(num_steps=4))]
    assert len(set(digests)) == 4
    assert state().digest == digests[0]


def test_the_digest_does_not_depend_on_the_round() -> None:
    """A round that was skipped leaves the anchor; those who mixed the one before must not look different."""
    assert state(round_=4).digest == state(round_=5).digest


def test_a_snapshot_is_named_by_its_content() -> None:
    one, two = Snapshot(7, (state(), state(2.0))), Snapshot(99, (state(round_=9), state(2.0)))
    assert one.name == two.name == combined_digest((state().digest, state(2.0).digest))
    assert one.rounds == (4, 4)
    assert two.rounds == (9, 4)
    assert Snapshot(7, (state(2.0), state())).name != one.name


def test_of_one_fragment_the_name_is_its_digest() -> None:
    assert Snapshot(0, (state(),)).name == state().digest


def test_bytes_of_a_view_that_is_not_contiguous() -> None:
    x = torch.arange(6.0)
    assert from_bytes(bytearray(to_bytes(x[::2]))).tolist() == [0.0, 2.0, 4.0]
