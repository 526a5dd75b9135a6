"""What all benches count and show alike."""

import statistics

import pytest

from scripts.benches.lib.command import BenchError, Parser, enter, set_words
from scripts.benches.lib.stats import bars, between, gaps, grouped, listed, spread
from scripts.benches.lib.tables import table


def test_a_table() -> None:
    made = table("codec | bits:", [["fp32", 32], ["", 4.5]])
    assert made == "| codec | bits |\n|---|---:|\n| fp32 | 32 |\n| | 4.5 |"


def test_pairs_are_those_that_both_have() -> None:
    assert gaps({0: 1.1, 1: 0.9, 2: 5.0}, {0: 1.0, 1: 1.0}) == pytest.approx([0.1, -0.1])


def test_spreads() -> None:
    assert spread([1.0, 2.0, 6.0], ".1f") == "3.0 (1.0 to 6.0)"
    assert spread([1.0, 2.0, 6.0], ".0f", statistics.median) == "2 (1 to 6)"
    assert spread([0.5], "+.0%") == "+50%"
    assert between([3.0, 1.0], "g") == "1 to 3"
    assert listed([1.0, 2.0], ".1f") == "1.0, 2.0"
    assert bars([1.0, 5.0], 2.0) == [[1.0], [3.0]]
    assert grouped(range(5), lambda number: number % 2) == {0: [0, 2, 4], 1: [1, 3]}


def test_the_first_of_a_repeated_option_takes_the_place_of_the_default() -> None:
    parser = Parser("none", "What it does.", "none")
    parser.repeated("--seed", int, [0, 1, 2])
    assert parser.parse_args([]).seed == [0, 1, 2]
    assert parser.parse_args(["--seed", "3"]).seed == [3]
    assert parser.parse_args(["--seed", "3", "--seed", "4"]).seed == [3, 4]
    assert parser.parse_args([]).seed == [0, 1, 2]
    assert parser.parse_args([]).out.parts[-3:] == ("docs", "benchmarks", "none")


def test_settings_become_words() -> None:
    assert set_words({"a.b": 1}) == ["--set", "a.b=1"]
    assert set_words(["a=1", "b=2"]) == ["--set", "a=1", "--set", "b=2"]


def test_what_cannot_be_measured_is_said_in_a_line() -> None:
    def fails() -> int:
        raise BenchError("no links here")

    with pytest.raises(SystemExit, match="error: no links here"):
        enter(fails)
    with pytest.raises(SystemExit, match="1"):
        enter(lambda: 1)
