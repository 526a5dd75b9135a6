"""Scenarios of files: what they say, what is wrong with them, and what comes of small ones."""

from pathlib import Path

import pytest

from decentral.config.resolve import resolve_method
from decentral.errors import ConfigError
from decentral.run.scenario_file import read, shipped
from decentral.run.simulation import play, record_of, scenario_of

SMALL = """
[run]
rounds = 6

[method]
name = "diloco"
inner_steps = 10

[model]
parameters = 1_600_000
layers = 2
tokens_per_step = 100

[[machines]]
count = 2
step_s = 1.0
up = "10mbit"
down = "10mbit"
"""


def written(folder: Path, text: str) -> str:
    file = folder / "mine.toml"
    file.write_text(text)
    return str(file)


def test_those_that_come_along_can_be_read_and_built() -> None:
    assert set(shipped()) == {"1024-volunteers", "eight-homes", "four-clouds", "two-data-centres"}
    for name, words in shipped().items():
        file = read(name)
        assert words.endswith(".")
        scenario, _, scale = scenario_of(file)
        assert scenario.num_values * scale == pytest.approx(file.model.parameters)
        assert len(scenario.machines) == file.num_machines


def test_time_and_bytes_are_those_of_the_model_and_not_of_its_stand_in(tmp_path: Path) -> None:
    """By hand: int8 of half of 1.6 M values each way, twice a round, over 10 Mbit/s: 1.3 s beside ten steps of 1 s."""
    file = read(written(tmp_path, SMALL))
    assert scenario_of(file)[2] == pytest.approx(1_600_000 / 32_768)
    played = play(file)
    assert played.tokens == 2 * 6 * 10 * 100
    assert played.sent_bytes == pytest.approx(6 * 2 * 1_600_000, rel=0.1)
    assert played.dp_bytes == 8 * 0.5 * 1_600_000 * 120
    assert played.virtual_s == pytest.approx(6 * (10 + 1.3), rel=0.1)
    assert 0.8 < played.utilisation < 0.95
    assert (played.mixed, played.lost, played.members, record_of(played)["loss"]) == (12, 0, 2.0, None)


@pytest.mark.parametrize("count", [2, 4])
def test_equal_machines_meet_in_every_round_however_long_a_swap_takes(tmp_path: Path, count: int) -> None:
    """Values are on their way for half of a stretch: a guest that falls behind has to come back in step."""
    text = SMALL.replace("count = 2", f"count = {count}").replace("diloco", "noloco").replace("= 10\n", "= 5\n")
    stated = ["run.rounds=12", "method.codec=fp32", "method.pull_codec=fp32", "model.parameters=600_000"]
    played = play(read(written(tmp_path, text), stated))
    assert (played.mixed, played.members) == (12 * count, 2.0)


def test_regions_are_further_apart_than_neighbours(tmp_path: Path) -> None:
    far = SMALL.replace("count = 2", 'region = "a"') + (
        '\n[[machines]]\nregion = "b"\n[[links]]\nbetween = ["a", "b"]\nlatency_s = 3.0\n'
    )
    near = far.replace("latency_s = 3.0", "latency_s = 0.01")
    times_s = [play(read(written(tmp_path, text), ["run.rounds=2"])).virtual_s for text in (near, far)]
    assert times_s[1] - times_s[0] > 2 * 2 * 3.0


def test_machines_die_come_back_and_are_missed(tmp_path: Path) -> None:
    text = SMALL.replace("count = 2", "count = 4\nleave_every_s = 60\nback_after_s = 10")
    file = read(written(tmp_path, text), ["model.parameters=1000", "run.rounds=20"])
    played = play(file)
    assert played.deaths > 2
    assert played.members < 4
    assert played.tokens < 4 * 20 * 10 * 100
    assert play(file).tokens == played.tokens  # the same file gives the same run


def test_a_real_trainer_learns(tmp_path: Path) -> None:
    text = '[run]\nrounds = 8\n[task]\nfactory = "decentral.workers.toy:build"\n[task.settings]\nnumel = 100\n'
    text += "[method]\ninner_steps = 5\n[model]\ntrain = true\n[[machines]]\ncount = 2\n"
    file = read(written(tmp_path, text))
    short = play(read(written(tmp_path, text), ["run.rounds=1"]))
    played = play(file)
    assert (played.parameters, played.tokens) == (100, 2 * 8 * 5 * 8)
    assert played.loss < short.loss / 2


def test_so_many_machines_in_the_same_proportions() -> None:
    file = read("1024-volunteers", ["network.latency_s=0.5", "method.codec=fp32"], 10)
    assert [kind.count for kind in file.machines] == [8, 2]
    assert file.network.latency_s == 0.5
    assert resolve_method(file.swarm).method.codec == "fp32"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (SMALL + "cout = 3", "unknown key 'machines[1].cout'", "'count'"),
        (SMALL.replace("[model]", "[modell]"), "unknown key 'modell.", "'"),
        (SMALL.replace("inner_steps", "iner_steps"), "unknown key 'method.iner_steps'", "'method.inner_steps'"),
        (SMALL.replace("step_s = 1.0", "step_s = 0.0"), "machines[1].step_s = 0.0: must be a number, above 0", ""),
        (SMALL.replace('"10mbit"', '"fast"', 1), 'machines[1].up = "fast": must be a rate such as 20mbit', ""),
        (SMALL.replace("rounds = 6", "rounds = 0"), "run.rounds = 0: must be a whole number", ""),
        (SMALL.replace("[[machines]]", "[machines]"), "machines must be a list of tables", "[[machines]]"),
        (SMALL.partition("[[")[0], "there are no machines", "count = 8"),
        (SMALL.replace("count = 2", "count = 1"), "there are 1 machines: must be at least 2", ""),
        (SMALL + "[[links]]\nlatency_s = 1.0", "links[1].between is missing: must be two names of regions", ""),
        (SMALL + '[[links]]\nbetween = ["a", "b"]', "links[1].between names 'a', where no machine is", "region"),
        (SMALL + '[[faults]]\nkind = "flood"\nat_s = 1', "faults[1]: Invalid enum value 'flood'", "kill"),
        (SMALL + '[[faults]]\nkind = "kill"\nat_s = 1\nmachines = [2]', "faults[1].machines has 2", ""),
        (SMALL + "[pipeline]\nstages = 2", "pipeline.stages is 2", "--virtual"),
        ("rounds = ", "is not valid TOML", ""),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(tmp_path: Path, text: str, message: str, hint: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read(file)
    assert caught.value.message.startswith(file)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_what_cannot_be_simulated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no scenario nine-homes"):
        read("nine-homes")
    with pytest.raises(ConfigError, match="is simulated with at most 16,"):
        play(read(written(tmp_path, SMALL), num_machines=65))
    with pytest.raises(ConfigError, match="--workers 0: must be at least 1"):
        read(written(tmp_path, SMALL), num_machines=0)
    with pytest.raises(ConfigError, match="machines is a list"):
        read(written(tmp_path, SMALL), ["machines.count=3"])
