"""Rows for a sampler: each once an epoch, and on from where a worker was."""

import json
from contextlib import closing
from itertools import islice
from types import SimpleNamespace

import pytest

from decentral.engine.rows import RowClaims
from decentral.errors import ConfigError, UsageError
from decentral.run.network import NetworkThread
from decentral.run.rows import Rows
from decentral.swarm.presence import Presence, State
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.types import PeerId

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
    network.call(claims.start(), timeout_s=5)
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
        network.call(claims.take("other", 1), timeout_s=5)  # behind those that were claimed ahead
        claims = _claims(network)
        claims.forfeit()
        again = _rows(network, claims, num_rows=96)
        again.load_state_dict(rows.state_dict())
        rest = set(islice(again, 16))  # of six chunks two had been read, one was being read and two were claimed
        assert again.epoch == 0
        assert not rest & set(islice(rows, 43))


def test_rows_are_for_a_worker_in_a_swarm():
    with pytest.raises(UsageError, match="not in it yet"):
        next(Rows(5))
    with pytest.raises(ConfigError, match="names no data set"):
        Rows(0)
