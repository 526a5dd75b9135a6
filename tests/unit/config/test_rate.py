"""Rates as people write them, and a worker's cap made of one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.config.rate import LEAST_BYTES_PER_S, show_rate, to_bytes_per_s
from decentral.config.settings import load
from decentral.errors import ConfigError


def max_upload(text: str) -> float:
    return load(None, [], {"worker.max_upload": text}).worker.max_upload


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("20mbit", 2_500_000),
        ("20Mbit/s", 2_500_000),
        (" 20 MBIT ", 2_500_000),
        ("2.5MB", 2_500_000),
        (".5GB/s", 500_000_000),
        ("800kbit", 100_000),
        ("300kB", 300_000),
        ("300KB", 300_000),
        ("1gbit", 125_000_000),
        ("400kbit", 50_000),
        ("0", 0),
        ("0mbit", 0),
    ],
)
def test_a_rate_is_bytes_in_a_second(text: str, bytes_per_s: float) -> None:
    assert max_upload(text) == bytes_per_s


@given(bytes_per_s=st.floats(min_value=LEAST_BYTES_PER_S, max_value=1e12))
def test_a_rate_that_is_shown_can_be_read(bytes_per_s: float) -> None:
    assert to_bytes_per_s(show_rate(bytes_per_s)) == pytest.approx(bytes_per_s, rel=1e-9)


@pytest.mark.parametrize(
    ("bytes_per_s", "shown"), [(2_500_000, "20mbit"), (31_250, "250kbit"), (187_500_000, "1.5gbit"), (0, "0kbit")]
)
def test_a_rate_is_shown_in_bits(bytes_per_s: float, shown: str) -> None:
    assert show_rate(bytes_per_s) == shown


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "it must be a number and a unit, such as 20mbit"),
        ("fast", "it must be a number and a unit"),
        ("1,5mbit", "it must be a number and a unit"),
        ("1e3mbit", "it must be a number and a unit"),
        ("20mbit/h", "it must be a number and a unit"),
        ("nan", "it must be a number and a unit"),
        ("20", "it has no unit: write kbit, mbit or gbit for bits a second, kB, MB or GB for bytes"),
        ("20mb", "mb is not a unit: write kbit, mbit or gbit"),
        ("20Mb/s", "Mb is not a unit"),
        ("20furlong", "furlong is not a unit"),
        ("-5mbit", "it must not be negative; 0 stands for no limit"),
        ("399kbit", "399kbit is less than 400kbit, below which the messages"),
        ("1kB", "8kbit is less than 400kbit"),
    ],
)
def test_what_is_no_rate_is_refused_with_the_reason(text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=f'^worker.max_upload = "{text}": {match}'):
        max_upload(text)


def test_a_number_too_large_is_no_rate() -> None:
    with pytest.raises(ConfigError, match="must be a rate such as 20mbit"):
        max_upload("9" * 400 + "mbit")


def test_a_file_has_bytes_in_a_second_or_a_text(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[worker]\nmax-upload = 250_000\n")
    assert load(file).worker.max_upload == 250_000
    file.write_text('[worker]\nmax-upload = "2mbit"\n')
    assert load(file).worker.max_upload == 250_000
    assert load(file, ["worker.max_upload=1.5mbit"]).worker.max_upload == 187_500


@pytest.mark.parametrize(
    ("value", "match"), [("20", "0.16kbit is less"), ("-1", "negative"), ("true", "must be a rate"), ("[1]", "a rate")]
)
def test_a_number_out_of_range_and_what_is_no_number_are_refused(value: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load(None, [f"worker.max_upload={value}"])


def test_without_a_word_there_is_no_limit() -> None:
    assert load().worker.max_upload == 0
