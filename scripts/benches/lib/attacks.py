"""Workers that lie, for tests and benches: each attack as a wrapper of what an ordinary worker sends.

A liar trains and mixes like everybody; what it brings to a round is replaced on the way out. Liars may know what honest
workers bring, as the strongest attacks of the literature assume: those who tell write to a common ``Board``.

Legend: N = values in the fragment.
"""

import asyncio
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from decentral.codecs.codec import Codec
from decentral.codecs.frame import MAGIC, frame_overhead
from decentral.engine.worker import Worker
from decentral.exchange.allreduce.exchange import AllReduce
from decentral.exchange.api import Contribution, Exchange, Verdict
from decentral.ports.transport import Transport
from decentral.sim.scenario import Meddle
from decentral.sim.world import SimPeer, peer_id
from decentral.types import PeerId, SyncKey
from scripts.benches.lib.deceits import DECEITS, lead

#: What a liar brings in place of its own, given what honest workers brought.
Attack = Callable[[Contribution, Sequence[Tensor], torch.Generator], Contribution]

#: How far from the mean a little is, in standard deviations: enough to be felt, little enough to be among the honest.
_LITTLE = 1.5
#: How many times the honest mean is brought with the other sign.
_INNER_PRODUCT = 1.1
#: Near the largest float.
_HUGE = 3e38
#: Where a frame's header has the codec's name, the number of values and the checksum (docs/wire-format.md).
_NAME, _NUMEL, _CHECKSUM = 6, 28, 36
#: How often liars look whether the honest have brought theirs, seconds.
_LOOK_S = 0.02


@dataclass
class Board:
    """What honest workers brought last, by fragment: the liars' common knowledge."""

    brought: dict[int, dict[PeerId, tuple[int, Tensor]]] = field(default_factory=lambda: defaultdict(dict))
    """With the round."""
    num_honest: int = 0
    wait_s: float = 0.5
    """For so long liars wait for all of them."""

    def note(self, key: SyncKey, peer: PeerId, delta_N: Tensor) -> None:
        """An honest worker brings this."""
        self.brought[key.fragment][peer] = key.round, delta_N

    def complete(self, key: SyncKey) -> bool:
        """Whether all honest workers have brought theirs to this round."""
        return sum(round_ >= key.round for round_, _ in self.brought[key.fragment].values()) >= self.num_honest

    def honest(self, fragment: int) -> list[Tensor]:
        """The latest contributions, in order of peer id."""
        return [delta_N for _, (_, delta_N) in sorted(self.brought[fragment].items())]


def _values(change: Callable[[Tensor], Tensor]) -> Attack:
    return lambda mine, honest, dice: replace(mine, delta_N=change(mine.delta_N), relative_N=None)


def _noise(mine: Contribution, honest: Sequence[Tensor], dice: torch.Generator) -> Contribution:
    noise_N = torch.randn(mine.delta_N.shape, generator=dice)
    return replace(mine, delta_N=noise_N.mul_(mine.delta_N.norm() / noise_N.norm()), relative_N=None)


def _little(mine: Contribution, honest: Sequence[Tensor], dice: torch.Generator) -> Contribution:
    """ALIE: the honest mean, off by some standard deviations in every coordinate."""
    if len(honest) < 2:
        return mine
    honest_mN = torch.stack(list(honest))
    return replace(mine, delta_N=honest_mN.mean(0) - _LITTLE * honest_mN.std(0), relative_N=None)


def _opposite_mean(mine: Contribution, honest: Sequence[Tensor], dice: torch.Generator) -> Contribution:
    """FoE: against the honest mean, so that the inner product of what comes out with it is small or negative."""
    if not honest:
        return mine
    return replace(mine, delta_N=-_INNER_PRODUCT * torch.stack(list(honest)).mean(0), relative_N=None)


#: By name. Little is enough (ALIE): arXiv 1902.06156, here with 1.5 standard deviations, as its own formula gives 0 for
#: eight workers. Fall of empires (FoE), the inner product attack: arXiv 1903.03936, with epsilon 1.1.
ATTACKS: Mapping[str, Attack] = {
    "absent": lambda mine, honest, dice: replace(mine, weight=0.0),
    "negate": _values(torch.neg),
    "scale-1e6": _values(lambda delta_N: delta_N * 1e6),
    "scale-3": _values(lambda delta_N: delta_N * 3),
    "negate-1e6": _values(lambda delta_N: delta_N * -1e6),
    "noise": _noise,
    "huge": _values(lambda delta_N: delta_N.sign() * _HUGE),
    "free-rider": _values(torch.zeros_like),
    "weight-1e6": lambda mine, honest, dice: replace(mine, weight=mine.weight * 1e6),
    "alie": _little,
    "foe": _opposite_mean,
}

#: By name, what a lying reducer's mean is multiplied by.
REDUCERS: Mapping[str, float] = {"reducer-negate": -1.0, "reducer-3": 3.0, "reducer-1e6": 1e6, "reducer-nan": math.nan}


#: By name, what lying leaders bring to the rounds in which they are alone.
LEADERS: Mapping[str, Attack] = {
    "leader": lambda mine, honest, dice: mine,
    "leader-negate": _values(lambda delta_N: delta_N * -2),
}

#: Frames hold NaN.
NAN = "nan"
#: Lies about what a worker brings to rounds.
VALUES = (NAN, *ATTACKS)
#: All that a worker may do.
KINDS = (*VALUES, *REDUCERS, *LEADERS, *DECEITS)


def liars(attack: str, numbers: Collection[int]) -> Meddle:
    """Make liars of some workers.

    Args:
        attack: one of ``KINDS``; with anything else nobody lies.
        numbers: theirs.
    """
    board, ids = Board(), [peer_id(number) for number in numbers]

    def meddle(number: int, worker: Worker, peer: SimPeer) -> None:
        if number not in numbers or attack not in KINDS:
            board.num_honest += 1
            watch(worker._exchange, peer.peer_id, board)
        elif attack in VALUES:
            lie(worker, attack, board, number)
        elif attack in REDUCERS:
            _lie_as_reducer(worker._exchange, worker._options.mean_codec, REDUCERS[attack])
        elif attack in DECEITS:
            DECEITS[attack](worker, peer, ids)
        else:
            lead(worker, peer, ids)
            _lie(worker._exchange, LEADERS[attack], board, number)

    return meddle


def lie(worker: Worker, attack: str, board: Board, seed: int) -> None:
    """Make a liar of a worker, wherever it runs.

    Args:
        worker: before it is in a swarm.
        attack: one of ``VALUES``.
        board: what is known of the honest.
        seed: of what is drawn.
    """
    if attack == NAN:
        _spoil_frames(worker._parts.transport, worker._options.codec)
    else:
        _lie(worker._exchange, ATTACKS[attack], board, seed)


def watch(exchange: Exchange, peer: PeerId, board: Board) -> None:
    """Note on the board what an honest worker brings."""
    mix = exchange.mix

    async def watched(key: SyncKey, mine: Contribution) -> Verdict:
        if mine.weight > 0:
            board.note(key, peer, mine.delta_N)
        return await mix(key, mine)

    exchange.mix = watched  # type: ignore[method-assign]


def _lie(exchange: Exchange, attack: Attack, board: Board, seed: int) -> None:
    """Replace all that a worker brings."""
    mix, dice = exchange.mix, torch.Generator().manual_seed(seed)

    async def lying(key: SyncKey, mine: Contribution) -> Verdict:
        waited_s = 0.0
        while not board.complete(key) and waited_s < board.wait_s:
            await asyncio.sleep(_LOOK_S)
            waited_s += _LOOK_S
        if mine.weight == 0:
            return await mix(key, mine)
        verdict = await mix(key, attack(mine, board.honest(key.fragment), dice))
        # Its own error feedback must not bring the difference, on top of the next lie.
        return verdict if verdict.sent_N is None else replace(verdict, sent_N=mine.delta_N)

    exchange.mix = lying  # type: ignore[method-assign]


def _spoil_frames(transport: Transport, codec: Codec) -> None:
    """Send frames whose values are not finite, with checksums that fit."""
    call = transport.call

    async def spoilt(peer: PeerId, method: str, request: bytes, *, timeout_s: float, max_reply_bytes: int) -> bytes:
        request = _with_payload(request, codec, lambda payload, numel: b"\xff" * len(payload))
        return await call(peer, method, request, timeout_s=timeout_s, max_reply_bytes=max_reply_bytes)

    transport.call = spoilt  # type: ignore[method-assign]


def _lie_as_reducer(exchange: Exchange, codec: Codec, factor: float) -> None:
    """Answer all members with means times ``factor``, the same bytes to all, and sign that."""
    assert isinstance(exchange, AllReduce)
    encode = exchange._reducer._encode

    def change(payload: bytes, numel: int) -> bytes:
        if math.isnan(factor):
            return b"\xff" * len(payload)
        return codec.encode((codec.decode(payload, numel) * factor).clamp_(-_HUGE, _HUGE), 0)

    def lying(mean_S: Tensor, rest_S: Tensor | None, seed: int) -> tuple[bytes, Tensor, Tensor | None]:
        frame, sent_S, left_S = encode(mean_S, rest_S, seed)
        return _with_payload(frame, codec, change), sent_S, left_S

    exchange._reducer._encode = lying  # type: ignore[method-assign]
    # It takes its own answers as the others do.
    exchange._reducer.beside = lambda *_: nullcontext()  # type: ignore[method-assign, assignment]


def _with_payload(message: bytes, codec: Codec, change: Callable[[bytes, int], bytes]) -> bytes:
    """A message whose frame has another payload and a checksum that fits; one without a frame of this codec stays.

    Args:
        message: of any kind.
        codec: of the frame.
        change: told the payload and the number of values.
    """
    at = message.find(MAGIC)
    numel = int.from_bytes(message[at + _NUMEL : at + _CHECKSUM], "little")
    if at < 0 or not message[at + _NAME : at + _NUMEL].startswith(codec.name.encode()):
        return message
    first = at + frame_overhead(codec.name)
    end = first + codec.nbytes(numel)
    payload = change(message[first:end], numel)
    checksum = zlib.crc32(payload).to_bytes(4, "little")
    return message[: at + _CHECKSUM] + checksum + payload + message[end:]
