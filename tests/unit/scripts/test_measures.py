"""What benches make of what they see: rates of links, stretches of a journal, bytes of messages, who waits for whom."""

import math
import os
import socket
import subprocess

import numpy as np
import pytest

from decentral.codecs.codec import make_codec
from decentral.exchange.wire import Wire
from scripts.benches.lib.costs import Spent, family, memory_bytes, processor_s, sent_bytes
from scripts.benches.lib.links import Counters, Flow, carried, during, emulation
from scripts.benches.peers_page import seconds_to, waited_ms
from scripts.benches.stragglers import AT_MOST, REMEMBERED, Swarm, barrier, pairs, with_deadline
from scripts.benches.utilisation import cost, lap
from scripts.benches.wire import predict

IDLE = Flow(0, 0, 0, 0)


def sample(time_s: float, up: int, down: int = 0) -> Counters:
    return Counters(time_s, time_s / 10, time_s / 1000, (IDLE, Flow(up, 1, 0, 0)), (IDLE, Flow(down, 1, 0, 0)))


def test_what_a_link_carried_in_a_time() -> None:
    samples = [sample(0.0, 0), sample(1.0, 1000, 10), sample(2.0, 4000, 20), sample(3.0, 4500, 30), sample(9.0, 9999)]
    inside = during(samples, 1.0, 3.0)
    assert [each.time_s for each in inside] == [1.0, 2.0, 3.0]
    up = carried(inside, 1)
    assert (up.bytes, up.mean_bits_per_s, up.peak_bits_per_s) == (3500, 8 * 1750, 8 * 3000)
    assert carried(inside, 1, "down").bytes == 20
    assert emulation(inside) == pytest.approx({"emulator_cpu": 0.1, "latest_s": 0.003})


def test_less_than_a_second_has_no_peak() -> None:
    assert math.isnan(carried([sample(0.0, 0), sample(0.5, 1)], 1).peak_bits_per_s)


def test_a_lap_begins_when_the_first_round_has_its_steps() -> None:
    stretches = [{"step": 2 * n, "time": 100.0 + 3 * n, "seconds": 1.0 + n, "tokens": 10} for n in range(1, 7)]
    found = lap(stretches, 3, 8, 90.0)
    assert found == {"began_s": 16.0, "ended_s": 22.0, "steps": 4, "tokens": 20, "compute_s": 4.0 + 5.0}


def test_processor_time_is_that_of_the_lap_by_who_has_spent_it() -> None:
    spent = [Spent(float(at), 0.5 * at, 0.25 * at, 0.125 * at) for at in range(10)]
    own = {"began_s": 1.5, "ended_s": 8.5}
    assert cost([Spent(0.0, 9.0, 9.0, 9.0), *spent[1:]], own) == {"training": 0.5, "python": 0.25, "daemon": 0.125}


def test_of_a_process_the_main_thread_is_told_apart_from_others_and_from_what_it_has_started() -> None:
    before = Spent.of(os.getpid())
    until = before.training_s + before.python_s + 0.05
    while (after := Spent.of(os.getpid())).training_s + after.python_s < until:
        pass
    assert after.time_s > before.time_s
    assert after.training_s > before.training_s
    # Process and thread are counted in ticks, and read one after the other.
    assert after.python_s >= before.python_s - 2 / os.sysconf("SC_CLK_TCK")


def test_bytes_of_a_round_are_content_and_what_is_around_it() -> None:
    wire = Wire((1000,), make_codec("fp32"), make_codec("int8-b128"))
    members = ["a", "b", "c", "d"]
    sent, content = predict({"members": members, "round": 3, "fragment": 0, "digest": "0" * 32}, wire)
    assert sorted(sent) == members
    assert content == 3 * (wire.codec.nbytes(1000) + wire.mean_codec.nbytes(1000))
    assert 1.0 < sum(sent.values()) / content < 1.2


def swarm(workers: int) -> Swarm:
    lateness = np.full((workers, REMEMBERED), np.nan)
    return Swarm(np.random.default_rng(0), np.zeros(workers), lateness, np.full(workers, np.inf))


def test_a_barrier_waits_for_all_and_a_pair_for_the_later_one() -> None:
    ready = np.array([1.0, 2.0, 3.0, 4.0])
    assert barrier(swarm(4), ready, ready).tolist() == [4.0] * 4
    one, other = swarm(4).pairs()
    ends = pairs(swarm(4), ready, ready)
    assert ends[one].tolist() == ends[other].tolist() == np.maximum(ready[one], ready[other]).tolist()


def test_nobody_waits_beyond_its_budget() -> None:
    stretch = np.array([10.0, 10.0])
    within, beyond = swarm(2), swarm(2)
    assert with_deadline(within, np.array([10.0, 12.0]), stretch).tolist() == [12.0, 12.0]
    assert sorted(within.budget.tolist()) == pytest.approx([AT_MOST * 10 - 2, AT_MOST * 10])
    assert with_deadline(beyond, np.array([10.0, 13.0]), stretch).tolist() == [10.0, 13.0]
    assert (within.alone, beyond.alone) == (0, 2)


def test_costs_are_of_a_process_and_all_that_come_of_it() -> None:
    child = subprocess.Popen(["sh", "-c", "read line; exit 0"], stdin=subprocess.PIPE)
    try:
        assert {os.getpid(), child.pid} <= set(family(os.getpid()))
        assert memory_bytes(os.getpid()) > memory_bytes(child.pid) > 0
        assert processor_s(os.getpid()) > 0
    finally:
        child.communicate(b"\n")
    assert (family(child.pid), memory_bytes(child.pid), processor_s(child.pid)) == ([child.pid], 0, 0)


def test_an_interface_counts_what_it_has_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sender:
        before = sent_bytes()
        sender.sendall(bytes(100_000))
        receiver = server.accept()[0]
        with receiver:
            received = 0
            while received < 100_000:
                received += len(receiver.recv(1 << 20))
        assert sent_bytes() - before > 100_000


def test_a_round_waits_without_the_first_and_a_loss_is_reached_at_the_end_of_a_round() -> None:
    record = {"steps": 6, "inner_steps": 2, "waits": [(2, 9.0), (4, 0.25), (5, 0.25), (6, 0.5)]}
    assert waited_ms(record) == 500
    record["curve"] = [(1, 10.0, 3.0), (2, 20.0, 2.5), (3, 30.0, 2.6)]
    assert [seconds_to(record, loss) for loss in (3.0, 2.55, 2.4)] == [10.0, 20.0, math.inf]
