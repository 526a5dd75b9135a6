from hypothesis import given, settings
from hypothesis import strategies as st

from decentral.exchange.allreduce.answers import Answers

PARTICIPANTS = b"participants"


def test_an_answer_is_kept_for_those_who_ask() -> None:
    answers = Answers()
    assert answers.get(PARTICIPANTS, 0) is None
    assert answers.accept(PARTICIPANTS, 0, b"mean")
    assert answers.ask(PARTICIPANTS, 0) == answers.get(PARTICIPANTS, 0) == b"mean"
    assert not answers.forsworn(PARTICIPANTS, 0)
    assert answers.accept(PARTICIPANTS, 0, b"mean"), "the same answer may arrive twice"


def test_an_answer_that_comes_after_the_question_is_never_used() -> None:
    answers = Answers()
    assert answers.ask(PARTICIPANTS, 0) is None
    assert answers.forsworn(PARTICIPANTS, 0)
    assert not answers.accept(PARTICIPANTS, 0, b"mean")
    assert answers.get(PARTICIPANTS, 0) is answers.ask(PARTICIPANTS, 0) is None


def test_an_answer_that_another_member_has_is_used() -> None:
    answers = Answers()
    answers.ask(PARTICIPANTS, 0)
    answers.adopt(PARTICIPANTS, 0, b"mean")
    assert answers.get(PARTICIPANTS, 0) == b"mean"
    assert not answers.forsworn(PARTICIPANTS, 0)
    assert answers.accept(PARTICIPANTS, 0, b"mean")


def test_looking_is_not_asking() -> None:
    answers = Answers()
    assert answers.get(PARTICIPANTS, 0) is None
    assert not answers.forsworn(PARTICIPANTS, 0)
    assert answers.accept(PARTICIPANTS, 0, b"mean")


def test_shards_and_rounds_are_apart() -> None:
    answers = Answers()
    answers.ask(PARTICIPANTS, 0)
    assert answers.accept(PARTICIPANTS, 1, b"one")
    assert answers.accept(b"other", 0, b"two")
    assert answers.forsworn(PARTICIPANTS, 0)


def test_only_the_last_rounds_are_remembered() -> None:
    answers = Answers()
    for number in range(4):
        answers.accept(b"%d" % number, 0, b"mean")
        assert answers.get(b"%d" % number, 0) == b"mean"
    assert answers.get(b"1", 0) == b"mean"
    assert answers.get(b"0", 0) is None


def rounds(answers: Answers, count: int, **ended: bool) -> None:
    for number in range(count):
        answers.accept(b"%d" % number, 0, b"mean")
        if ended:
            answers.end(b"%d" % number, **ended)


def known(answers: Answers, count: int) -> list[int]:
    return [number for number in range(count) if answers.get(b"%d" % number, 0) is not None]


def test_what_all_have_is_forsworn() -> None:
    answers = Answers(budget_bytes=100)
    rounds(answers, 5, with_all=True)
    assert known(answers, 5) == [4]
    assert all(answers.forsworn(b"%d" % number, 0) for number in range(4)), "no reducer begins them anew"


def test_what_somebody_may_have_missed_is_kept() -> None:
    answers = Answers(budget_bytes=100)
    rounds(answers, 5, with_all=False)
    assert known(answers, 5) == [0, 1, 2, 3, 4]
    answers.accept(b"5", 0, b"mean")
    answers.end(b"5", with_all=True)
    assert known(answers, 6) == [5]


def test_a_little_is_kept_in_any_case() -> None:
    answers = Answers(budget_bytes=100, spare_bytes=12)
    rounds(answers, 5, with_all=True)
    assert known(answers, 5) == [2, 3, 4]


def test_a_round_that_is_not_over_here_is_not_forgotten() -> None:
    """Whoever is quicker is in the next one, and has perhaps asked for a mean of it that may never be used now."""
    answers = Answers(budget_bytes=100)
    rounds(answers, 2)
    answers.end(b"0", with_all=True)
    assert answers.ask(b"2", 0) is None
    answers.get(b"1", 0)
    answers.end(b"1", with_all=True)
    assert answers.forsworn(b"2", 0)
    assert known(answers, 3) == [1]


moves = st.lists(st.sampled_from(["accept", "get", "ask", "adopt", "forsworn"]), max_size=12)


@given(moves=moves)
def test_either_kept_or_forsworn_never_both(moves: list[str]) -> None:
    """Against a model of three states: nothing known, answer kept, forsworn. Only ``adopt`` leaves the last."""
    answers = Answers()
    state = "unknown"
    for move in moves:
        if move == "accept":
            assert answers.accept(PARTICIPANTS, 0, b"mean") == (state != "forsworn")
            state = "kept" if state == "unknown" else state
        elif move == "ask":
            assert answers.ask(PARTICIPANTS, 0) == (b"mean" if state == "kept" else None)
            state = "forsworn" if state == "unknown" else state
        elif move == "adopt":
            answers.adopt(PARTICIPANTS, 0, b"mean")
            state = "kept"
        assert answers.get(PARTICIPANTS, 0) == (b"mean" if state == "kept" else None)
        assert answers.forsworn(PARTICIPANTS, 0) == (state == "forsworn")


class Member:
    """One member of a round as the exchange uses its answers; its verdict is final."""

    def __init__(self) -> None:
        self.answers = Answers()
        self.verdict = ""
        self.left_to_ask: list[Member] | None = None

    def hear_from_reducer(self) -> None:
        if self.left_to_ask is None and not self.verdict and self.answers.accept(PARTICIPANTS, 0, b"mean"):
            self.verdict = "mixed"

    def ask_next(self, members: "list[Member]") -> None:
        """Ask oneself, then the others one by one; between two questions anything may happen elsewhere."""
        if self.verdict:
            return
        if self.left_to_ask is None:
            self.left_to_ask = [self, *(other for other in members if other is not self)]
        if self.left_to_ask.pop(0).answers.ask(PARTICIPANTS, 0) is not None:
            self.answers.adopt(PARTICIPANTS, 0, b"mean")
            self.verdict = "mixed"
        elif not self.left_to_ask:
            self.verdict = "aborted"


@settings(max_examples=100)
@given(events=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=25))
def test_members_that_reach_each_other_end_alike(events: list[tuple[int, bool]]) -> None:
    """In whatever order the reducer's answers and the members' questions arrive: all mix, or none."""
    members = [Member() for _ in range(4)]
    for number, reducer_answers in events:
        if reducer_answers:
            members[number].hear_from_reducer()
        else:
            members[number].ask_next(members)
    while any(not member.verdict for member in members):
        for member in members:
            member.ask_next(members)
    assert len({member.verdict for member in members}) == 1
