import pytest
import torch

from decentral.errors import ConfigError, IncapableError
from decentral.ports.trainer import Seat
from decentral.workers import toy


def _build(stream_seed: int = 1, **settings) -> toy.ToyTrainer:
    return toy.build(settings, Seat(run_seed=0, stream_seed=stream_seed, total_steps=100))


def test_it_learns_the_hidden_vector() -> None:
    trainer = _build()
    before = trainer.validate()
    assert before == pytest.approx(0.5, rel=0.1)
    report = trainer.train_steps(0, 100)
    assert report.tokens == 800
    assert trainer.validate() < 0.01 * before


def test_steps_are_a_function_of_seed_and_step() -> None:
    first, second, other = _build(), _build(), _build(stream_seed=2)
    first.train_steps(0, 5)
    second.train_steps(0, 2)
    second.train_steps(2, 3)
    other.train_steps(0, 5)
    assert first.parameters()["layers.0.weight"].equal(second.parameters()["layers.0.weight"])
    assert not first.parameters()["layers.0.weight"].equal(other.parameters()["layers.0.weight"])


def test_the_values_are_spread_over_the_layers() -> None:
    trainer = _build(numel=10, num_layers=3)
    assert [value.numel() for value in trainer.parameters().values()] == [4, 3, 3]
    trainer.load({"layers.1.weight": torch.full((3,), 7.0)})
    assert trainer.parameters()["layers.1.weight"].tolist() == [7.0] * 3
    assert trainer.parameters()["layers.0.weight"].tolist() == [0.0] * 4


def test_bad_settings_and_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="numel is 2"):
        toy.resolve({"numel": 2})
    with pytest.raises(ConfigError, match="numl") as caught:
        toy.resolve({"numl": 2})
    assert "numel" in caught.value.hint
    with pytest.raises(IncapableError, match="cuda"):
        toy.check({}, "cuda")
    toy.check({}, "cpu")
