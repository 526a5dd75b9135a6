"""Who did what in which round, from the journals of several workers, and where they contradict each other. Pure.

A journal is what its worker says of itself and of others. A worker that lies may lie there as well, so what several say
of one counts for more than what it says: that is what is put side by side here. It imports no torch.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from decentral.types import PeerId

Line = Mapping[str, Any]
"""One event as a journal has it."""


class Key(NamedTuple):
    """One synchronisation."""

    round: int
    fragment: int
    stage: int
    """Of a pipeline; -1 of a whole model."""


@dataclass(frozen=True, slots=True)
class Said:
    """What one worker says of one synchronisation."""

    outcome: str
    """``mixed``, ``aborted`` or ``repaired``."""
    members: frozenset[PeerId] = frozenset()
    digest: str = ""
    """Of anchor and outer state afterwards."""
    delta_norm: float | None = None
    reason: str = ""
    """Why there was no result."""
    absent: Mapping[PeerId, str] = field(default_factory=dict)
    restrained: Mapping[PeerId, str] = field(default_factory=dict)
    """Whose contribution did not count as it was brought, and why."""


@dataclass(frozen=True, slots=True)
class WorkerAccount:
    """What one worker did in all rounds, by its own journal and by those of others."""

    peer: PeerId
    has_journal: bool
    first: int | None
    """Round, as ``last``; ``None`` if it ended none."""
    last: int | None
    mixed: int
    """Synchronisations that ended with a result, as it says; the same of the next three."""
    aborted: int
    repaired: int
    sat_out: int
    absent: Mapping[str, int]
    """How often others missed it, by the reason that they give: a round counts once."""
    restrained: Mapping[str, int]
    """How often its contribution did not count as it was brought, by the kind; a round counts once."""


class Kind(StrEnum):
    """How workers that ended one synchronisation differ."""

    ANCHORS = "anchors"
    """They name the same members and have different anchors afterwards."""
    MEMBERS = "members"
    """One is named as a member by somebody, and mixed with others."""
    APART = "apart"
    """Groups of which none names one of another: no contradiction, the swarm was cut."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What workers that ended one synchronisation say of it differently."""

    key: Key
    kind: Kind
    sides: tuple[tuple[str, tuple[PeerId, ...]], ...]
    """The digest of an anchor or the ids of members, and who says so; that of most workers first."""


@dataclass(frozen=True, slots=True)
class Audit:
    """All of it."""

    run: str
    workers: tuple[WorkerAccount, ...]
    syncs: Mapping[Key, Mapping[PeerId, Said]]
    """What each says, in order."""
    differences: tuple[Difference, ...]
    """In the order of rounds."""

    @property
    def contradicts(self) -> bool:
        """Whether anything is said that cannot all be so."""
        return any(each.kind is not Kind.APART for each in self.differences)


def audit(run: str, journals: Mapping[PeerId, Sequence[Line]], *, common_anchor: bool) -> Audit:
    """Put journals of one run side by side.

    Args:
        run: its id.
        journals: by worker, each in the order of its file.
        common_anchor: whether members of a round have one anchor after it; not so in gossip and without rounds.
    """
    syncs: dict[Key, dict[PeerId, Said]] = defaultdict(dict)
    sat_out: Counter[PeerId] = Counter()
    for peer, lines in journals.items():
        restrained: dict[Key, dict[PeerId, str]] = defaultdict(dict)
        for line in lines:
            match line["event"]:
                case "round_mixed" | "round_aborted":
                    key = _key(line)
                    syncs[key][peer] = _said(line, restrained.pop(key, {}))
                case "restrained":
                    restrained[_key(line)][PeerId(str(line.get("peer")))] = str(line.get("kind"))
                case "repaired":
                    key = Key(_whole(line.get("round")), -1, _whole(line.get("stage", -1)))
                    syncs[key][peer] = Said("repaired", reason=str(line.get("reason", "")))
                case "sat_out":
                    sat_out[peer] += 1
                case _:
                    continue
    ordered = {key: syncs[key] for key in sorted(syncs)}
    differences = [each for key, said in ordered.items() if common_anchor for each in _differences(key, said)]
    return Audit(run, tuple(_accounts(journals, ordered, sat_out)), ordered, tuple(differences))


def _differences(key: Key, said: Mapping[PeerId, Said]) -> Iterable[Difference]:
    mixed = {peer: one for peer, one in said.items() if one.outcome == "mixed"}
    groups: dict[frozenset[PeerId], list[PeerId]] = defaultdict(list)
    for peer, one in mixed.items():
        groups[one.members].append(peer)
    for group in groups.values():
        anchors: dict[str, list[PeerId]] = defaultdict(list)
        for peer in group:
            anchors[mixed[peer].digest].append(peer)
        if len(anchors) > 1:
            yield Difference(key, Kind.ANCHORS, _sides(anchors))
    if len(groups) > 1:
        named = {", ".join(sorted(members)): peers for members, peers in groups.items()}
        overlap = any(peer in members for members in groups for peer in mixed if mixed[peer].members != members)
        yield Difference(key, Kind.MEMBERS if overlap else Kind.APART, _sides(named))


def _sides(of: Mapping[str, Sequence[PeerId]]) -> tuple[tuple[str, tuple[PeerId, ...]], ...]:
    return tuple((what, tuple(sorted(peers))) for what, peers in sorted(of.items(), key=lambda side: -len(side[1])))


def _accounts(
    journals: Mapping[PeerId, Sequence[Line]], syncs: Mapping[Key, Mapping[PeerId, Said]], sat_out: Counter[PeerId]
) -> Iterable[WorkerAccount]:
    named = {
        peer
        for said in syncs.values()
        for one in said.values()
        for peer in (*one.members, *one.absent, *one.restrained)
    }
    for peer in sorted(named | set(journals)):
        own = {key: said[peer] for key, said in syncs.items() if peer in said}
        outcomes = Counter(one.outcome for one in own.values())
        by_others: dict[str, Counter[str]] = {"absent": Counter(), "restrained": Counter()}
        for said in syncs.values():
            for what, counted in by_others.items():
                reasons = [getattr(one, what)[peer] for one in said.values() if peer in getattr(one, what)]
                counted.update(set(reasons))
        yield WorkerAccount(
            peer=peer,
            has_journal=peer in journals,
            first=min((key.round for key in own), default=None),
            last=max((key.round for key in own), default=None),
            mixed=outcomes["mixed"],
            aborted=outcomes["aborted"],
            repaired=outcomes["repaired"],
            sat_out=sat_out[peer],
            absent=dict(by_others["absent"]),
            restrained=dict(by_others["restrained"]),
        )


def _said(line: Line, restrained: Mapping[PeerId, str]) -> Said:
    absent = {PeerId(str(who)): str(why) for who, why in line.get("absent") or ()}
    if line["event"] == "round_aborted":
        text = ": ".join(part for part in (str(line.get("reason", "")), str(line.get("detail", ""))) if part)
        return Said("aborted", reason=text, absent=absent, restrained=restrained)
    return Said(
        "mixed",
        members=frozenset(PeerId(str(peer)) for peer in line.get("members") or ()),
        digest=str(line.get("digest", "")),
        delta_norm=line.get("delta_norm"),
        absent=absent,
        restrained=restrained,
    )


def _key(line: Line) -> Key:
    return Key(_whole(line.get("round")), _whole(line.get("fragment")), _whole(line.get("stage", -1)))


def _whole(value: object) -> int:
    return value if isinstance(value, int) else -1
