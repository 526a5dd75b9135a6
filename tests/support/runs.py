"""Made runs, as a page shows them: samples, rounds and events of workers that never were."""

import dataclasses
import math
from enum import StrEnum
from random import Random

from msgspec.structs import replace

from decentral.monitor.history import History
from decentral.monitor.report import RunFacts
from decentral.monitor.status import summarize
from decentral.swarm.presence import MAX_LINKS, Link, Metrics, Presence, State
from decentral.types import PeerId, short_id

BEGAN = 1_790_000_000.0
EVERY_S = 5.0
HOSTILE = "<img src=x onerror=alert(1)> timeout"
_ROUNDS, _STEPS_A_ROUND = 120, 3
_LETTERS = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class Kind(StrEnum):
    """What is the matter with a swarm."""

    TWO = "two"
    MANY = "many"
    DEAD = "dead"
    GOSSIP = "gossip"
    PIPELINE = "pipeline"
    EMPTY = "empty"


_SIZES = {Kind.TWO: 2, Kind.MANY: 64, Kind.DEAD: 4, Kind.GOSSIP: 9, Kind.PIPELINE: 6, Kind.EMPTY: 0}
_HELD = ("0", "1", "2", "2,3", "4", "")


def made(kind: Kind, steps: int = 240) -> History:
    """A run of so many samples. Of MANY some are in trouble, of DEAD and PIPELINE one dies before the end."""
    random, history = Random(3), History()
    peers = [PeerId("Qm" + "".join(random.choice(_LETTERS) for _ in range(44))) for _ in range(_SIZES[kind])]
    run = RunFacts(
        "demo-7f3a21c0", "noloco" if kind is Kind.GOSSIP else "streaming", "int8-b128", _ROUNDS, 12, "0.1.0", "ab12cd34"
    )
    run = dataclasses.replace(run, gossip=kind is Kind.GOSSIP, num_stages=4 if kind is Kind.PIPELINE else 0)
    for step in range(steps):
        time, round_ = BEGAN + EVERY_S * step, step // _STEPS_A_ROUND
        late = max(0, step - steps + 18) if kind in (Kind.DEAD, Kind.PIPELINE) else 0
        rows = [_row(run, kind, peers, index, step, EVERY_S * late, random) for index in range(len(peers))]
        history.sample(time, summarize(run, rows, ttl_s=6.0))
        if step % _STEPS_A_ROUND == _STEPS_A_ROUND - 1:
            _end_round(history, peers, time, round_, late > 0)
        if step % 30 == 2 and peers:
            saved = {
                "event": "saved",
                "path": "/x",
                "round": round_,
                "step": 20 * step,
                "held_s": 0.012,
                "nbytes": 48_000_000,
            }
            history.take({"time": time, **saved}, peers[0])
    if kind in (Kind.MANY, Kind.DEAD):
        bounded = {"event": "restrained", "round": 70, "fragment": 0, "peer": peers[2], "kind": "length", "ratio": 9.13}
        history.take({"time": time, **bounded}, peers[1])
    if kind is Kind.TWO:
        for peer in peers:
            history.take(
                {"time": time, "event": "launched", "round": round_ + 1, "fragment": 2, "step": 20 * steps}, peer
            )
    if kind is Kind.PIPELINE:
        history.take({"time": time - 9, "event": "stage_lost", "stage": 4, "step": 4700, "loss": 2.1}, peers[0])
    return history


def _row(
    run: RunFacts, kind: Kind, peers: list[PeerId], index: int, step: int, silent_s: float, random: Random
) -> tuple[Presence, float]:
    """The record of one worker, and its age."""
    wall_s, round_, peer = EVERY_S * (step + 1), step // _STEPS_A_ROUND, peers[index]
    speed = 900.0 + 20 * (index % 25)
    metrics = Metrics(
        step=20 * step,
        tokens=int(0.9 * speed * wall_s),
        tokens_per_s=speed * random.uniform(0.9, 1.1),
        loss=1.9 + 3.6 * math.exp(-step / 70) + random.gauss(0, 0.03) + 0.04 * (index % 5),
        val_loss=1.95 + 3.5 * math.exp(-(round_ // 10) * 0.42) if round_ >= 10 and index == 0 else math.nan,
        val_round=round_ // 10 * 10,
        compute_s=wall_s * (0.9 - 0.02 * (index % 6)),
        data_s=wall_s * (0.08 if index % 4 == 1 else 0),
        waiting_s=wall_s * 0.05 * (index % 3),
        transfer_s=wall_s * 0.03,
        wall_s=wall_s,
        sent_bytes=int(2.1e5 * wall_s),
        received_bytes=int(2.3e5 * wall_s),
        peak_sent_bytes_per_s=1.5e6 * (1 + index % 4),
        peak_received_bytes_per_s=1.9e6 * (1 + index % 3),
        dp_bytes=int(9.5e7 * wall_s),
        rounds_in=round_,
        rounds_out=int(index == 1),
        delay_steps=5,
        num_groups=2,
        partners=short_id(peers[(index + step + 1) % len(peers)]) if run.gossip else "",
        spread=0.012 if run.gossip else math.nan,
        queue=index % 3,
        microbatch_s=0.013 * (1 + index),
        failures="2:1" if run.num_stages else "",
        recoveries=int(bool(run.num_stages) and index == 3),
        recovery="stage 2 from its neighbours, loss 2.412 before, 2.431 after" if run.num_stages and index == 3 else "",
        version="0.1.0",
        device="cuda:0" if index % 2 else "cpu",
        saved_step=20 * (step - step % 40),
        links=_links(peers, index, wall_s),
    )
    state = State.TRAINING
    if kind is Kind.MANY:
        state = {7: State.CATCHING_UP, 11: State.STALLED}.get(index, state)
        reasons = {2: HOSTILE, 11: "takes no inner steps for 48 s"}
        notes = {9: "cannot save: No space left on device"}
        restrained = short_id(peers[2]) if index == 5 else ""
        metrics = replace(metrics, reason=reasons.get(index, ""), note=notes.get(index, ""), restrained=restrained)
    holds = _HELD[index] if run.num_stages else ""
    silent = index == (4 if run.num_stages else 2)
    age_s = silent_s if silent and silent_s else random.uniform(0, 2)
    return Presence(peer, run.run_id, step + 1, state, round_, 0, "d", 4.0, metrics, holds=holds), age_s


def _links(peers: list[PeerId], index: int, wall_s: float) -> tuple[Link, ...]:
    """Of one worker to its neighbours; the way between some of them is known to nobody."""
    others = [(index + step) % len(peers) for step in (1, 2, 3, 5, -1, -2, -3)]
    links = {}
    for place, other in enumerate(dict.fromkeys(others)):
        if other != index:
            known = (index + other) % 5 != 2
            moved = int(1e5 * wall_s / (1 + place))
            round_trip_s = 0.004 * (1 + abs(index - other) % 7) ** 2 if known else math.nan
            links[other] = Link(short_id(peers[other]), round_trip_s, moved, int(0.9 * moved))
    return tuple(links.values())[:MAX_LINKS]


def _end_round(history: History, peers: list[PeerId], time: float, round_: int, without: bool) -> None:
    """What the first workers' journals say of a round."""
    absent = [(peers[2], "did not answer in 5.0 s")] if without and len(peers) > 2 else []
    there = [peer for peer in peers if peer not in dict(absent)]
    for index, peer in enumerate(there[:8]):
        line = {"time": time, "round": round_, "fragment": round_ % 4, "held_s": 0.003 + 0.02 * index, "absent": absent}
        if index == 1 and round_ == 50:
            history.take({**line, "event": "round_aborted", "reason": "timeout", "detail": "a reducer"}, peer)
        else:
            history.take({**line, "event": "round_mixed", "members": there, "delay_steps": 5, "spread": None}, peer)
