"""Rows for a sampler: each once an epoch, and on from where a worker was."""

import json
from contextlib import closing
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from decentral.engine.rows import RowClaims
from decentral.errors import ConfigError, RankError, UsageError
from decentral.run.network import NetworkThread
from decentral.run.ranks import Ranks
from decentral.run.rows import Rows
from decentral.swarm.presence import Presence, State
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.types import PeerId
from tests.unit.run.test_ranks import together

ME = PeerId("me")


class Loopback:
    """A transport of a worker that is alone."""

    peer_id = ME

    async def serve(self, method, handler, **limits):
        self.handler = handler

    async def call(self, peer, method, request, **limits):
        return await self.handler(peer, request)


def _claims(network: NetworkThread) -> RowClaims:
    roster = Roster(6.0)
    roster.observe(Presence(ME, "run", 1, State.TRAINING, 0, 0, ""), 0.0)
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    claims = RowClaims(Loopback(), SimpleNamespace(roster=roster), clock, Timing())
    network.call(claims.start(), timeout_s=60)
    return claims


def _rows(network: NetworkThread, claims: RowClaims, num_rows: int = 100) -> Rows:
    rows = Rows(num_rows)
    rows.claims.bind(network, claims, seed=7)
    return rows


def test_each_row_is_given_once_in_each_epoch_and_in_another_order():
    with closing(NetworkThread()) as network:
        rows = _rows(network, _claims(network))
        first, second = list(islice(rows, 100)), list(islice(rows, 100))
        assert sorted(first) == sorted(second) == list(range(100))
        assert first != second
        assert rows.epoch == 1


def test_it_goes_on_with_the_very_next_row():
    with closing(NetworkThread()) as network:
        rows = _rows(network, _claims(network))
        before = list(islice(rows, 37))
        state = json.loads(json.dumps(rows.state_dict()))
        again = _rows(network, _claims(network))
        again.load_state_dict(state)
        assert sorted(before + list(islice(again, 63))) == list(range(100))


def test_what_rounds_may_have_counted_after_a_save_is_not_read_again():
    with closing(NetworkThread()) as network:
        claims = _claims(network)
        rows = _rows(network, claims, num_rows=96)
        list(islice(rows, 37))
        network.call(claims.take("other", 1), timeout_s=60)  # behind those that were claimed ahead
        claims = _claims(network)
        claims.forfeit()
        again = _rows(network, claims, num_rows=96)
        again.load_state_dict(rows.state_dict())
        rest = set(islice(again, 16))  # of six chunks two had been read, one was being read and two were claimed
        assert again.epoch == 0
        assert not rest & set(islice(rows, 43))


def test_ranks_have_the_rows_of_one_worker_and_none_twice(tmp_path: Path):
    """99 rows are seven chunks, of which the last one has three: its end is dealt out with the next one's beginning."""

    def read(ranks: Ranks):
        with closing(NetworkThread()) as network:
            rows = _rows(network, _claims(network), num_rows=99) if ranks.leads else Rows(99)
            rows.deal_to(ranks)
            first, state = list(islice(rows, 25)), rows.state_dict()
            return first, state, list(islice(rows, 73))

    first, second = together(tmp_path, read)
    whole = [row for pair in zip(first[0] + first[2], second[0] + second[2], strict=True) for row in pair]
    assert sorted(whole[:99]) == list(range(99))
    assert len(set(whole[99:])) == 97
    assert second[1] == {}
    with closing(NetworkThread()) as network:  # one process goes on where both were
        again = _rows(network, _claims(network), num_rows=99)
        again.load_state_dict(json.loads(json.dumps(first[1])))
        rest = list(islice(again, 49))
        assert sorted(whole[:50] + rest) == list(range(99))


def test_ranks_that_read_unequally_much_are_told(tmp_path: Path):
    def told(ranks: Ranks) -> str:
        with pytest.raises(RankError) as raised:
            ranks.meet("step" if ranks.leads else "the next row", 5, None)
        return raised.value.message

    assert set(together(tmp_path, told)) == {
        "The ranks of this worker are not in the same call: rank 0 in step at step 5, rank 1 in the next row at step 5."
    }


def test_rows_are_for_a_worker_in_a_swarm():
    with pytest.raises(UsageError, match="not in it yet"):
        next(Rows(5))
    with pytest.raises(ConfigError, match="names no data set"):
        Rows(0)
