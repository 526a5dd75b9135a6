"""Where a loop is in the data, as a checkpoint keeps it."""

import math

import pytest

from decentral.pipeline.position import POSITION, Position


def test_what_was_kept_is_read_again() -> None:
    for position in (Position(slot=3, batch=9, loss=1.5), Position(committed={0: 8, 3: 7}, healed_at=4, grad_norm=0.5)):
        read = Position.of({POSITION: position.to_plain(), "optimizer": {}})
        assert (read.slot, read.batch, read.committed) == (position.slot, position.batch, position.committed)
        assert read.healed_at == position.healed_at
    assert math.isnan(Position.of({}).loss)


@pytest.mark.parametrize(
    "plain", [{"slot": -1}, {"batch": "2"}, {"committed": {"a": 1}}, {"healed_at": 0.5}, {"batch": None}]
)
def test_what_makes_no_sense_is_refused(plain: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        Position.of({POSITION: plain})
