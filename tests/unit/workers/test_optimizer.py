"""Which inner optimizer a name stands for, what a wrong one is told, and that its state goes on by name."""

import copy
import io
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from decentral.config.file import to_toml
from decentral.config.resolve import resolve
from decentral.config.settings import load
from decentral.errors import ConfigError
from decentral.tensors.inner import InnerModel
from decentral.workers.lm.settings import read_settings
from decentral.workers.optimizer import OptimizerConfig, make_optimizers
from decentral.workers.settings import write

SHAPES = {"embedding": (5, 4), "blocks.0.up": (4, 6), "blocks.0.norm": (4,), "blocks.1.up": (4, 4)}
#: Of so many values as get a state of 8 bits, and of fewer.
WIDE = {"wide": (64, 80), "long": (5000,), "narrow": (4, 4)}


def named(shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def made(
    config: OptimizerConfig, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> tuple[InnerModel, dict[str, nn.Parameter]]:
    parameters = named(shapes)
    ends = frozenset({"embedding"})
    model = InnerModel(parameters, lambda trained: make_optimizers(trained, config, ends), lambda step: 0.01, 10.0)
    return model, parameters


def stepped(model: InnerModel, parameters: dict[str, nn.Parameter], steps: range) -> None:
    for step in steps:
        for value in parameters.values():
            value.grad = value.detach() * (step + 1) - 0.5
        model.step(step)


def test_muon_has_the_matrices_between_the_ends_and_adamw_the_rest() -> None:
    _, parameters = made(OptimizerConfig(name="Muon"))
    names = {id(value): name for name, value in parameters.items()}
    adamw, muon = make_optimizers(parameters, OptimizerConfig(name="Muon"), {"embedding"})
    of = {
        type(each).__name__: [names[id(value)] for group in each.param_groups for value in group["params"]]
        for each in (adamw, muon)
    }
    assert of == {"AdamW": ["embedding", "blocks.0.norm"], "Muon": ["blocks.0.up", "blocks.1.up"]}


def test_a_step_of_muon_is_as_large_as_one_of_adamw() -> None:
    (model, parameters), before = made(OptimizerConfig(name="Muon", weight_decay=0.0)), named()
    stepped(model, parameters, range(1))
    moved = (parameters["blocks.1.up"] - before["blocks.1.up"]).square().mean().sqrt().item()
    assert moved == pytest.approx(0.2 * 0.01, rel=0.3)  # arXiv 2502.16982: RMS 0.2 to match AdamW's


@pytest.mark.parametrize(
    ("name", "options"),
    [("Muon", {"momentum": 0.9}), ("SGD", {"momentum": 0.9, "nesterov": True}), ("Adafactor", {}), ("NAdam", {})],
)
def test_an_optimizer_goes_on_bit_for_bit(name: str, options: dict[str, object]) -> None:
    config = OptimizerConfig(name=name, options=options)
    whole, first, second = made(config), made(config), made(config)
    stepped(*whole, range(6))
    stepped(*first, range(2))
    file = io.BytesIO()
    torch.save(dict(first[0].state_dict()), file)
    file.seek(0)
    second[0].load({key: value.clone() for key, value in first[0].parameters().items()})
    second[0].load_state_dict(torch.load(file, weights_only=True))
    stepped(*second, range(2, 6))
    assert all(torch.equal(whole[1][key], second[1][key]) for key in whole[1])


def test_the_state_of_another_optimizer_is_not_taken() -> None:
    (source, stepping), (model, parameters), (fresh, others) = (
        made(OptimizerConfig(name=name)) for name in ("Muon", "AdamW", "AdamW")
    )
    stepped(source, stepping, range(2))
    state = source.state_dict()["optimizer"]
    model.load_state_dict(copy.deepcopy({"optimizer": state}))
    fresh.load_state_dict({"optimizer": {name: state[name] for name in ("embedding", "blocks.0.norm")}})
    stepped(model, parameters, range(2, 4))
    stepped(fresh, others, range(2, 4))
    assert all(torch.equal(parameters[key], others[key]) for key in parameters)


def test_muloco_steps_matrices_with_muon_unless_an_optimizer_is_stated(tmp_path: Path) -> None:
    def optimizer(*stated: str, base: Path | None = None) -> dict[str, object]:
        found: dict[str, object] = resolve(load(None, stated, base=base).swarm).task.settings["optimizer"]
        return found

    muloco = "method.name=muloco"
    assert optimizer(muloco)["name"] == "Muon"
    assert optimizer(muloco, "task.settings.optimizer.name=AdamW")["name"] == "AdamW"
    options = optimizer(muloco, "task.settings.optimizer.options.momentum=0.9")
    assert (options["name"], options["options"]) == ("Muon", {"momentum": 0.9})
    # A run that goes on with another method has that method's optimizer, and one that does not keeps its own.
    for name, now, then in (("muloco", "diloco", "AdamW"), ("diloco", "muloco", "Muon"), ("muloco", "", "Muon")):
        folder = tmp_path / f"{name}.toml"
        folder.write_text(to_toml(resolve(load(None, [f"method.name={name}"]).swarm)))
        assert optimizer(*([f"method.name={now}"] if now else []), base=folder)["name"] == then
    folder.write_text(to_toml(resolve(load(None, ["task.settings.optimizer.name=SGD"]).swarm)))
    assert optimizer("method.name=diloco", base=folder)["name"] == "SGD"


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ("task.settings.optimizer.options.beta=1", "Muon, .*'beta'.* options are momentum, nesterov, ns_coeff"),
        (
            "task.factory=decentral.workers.toy:build",
            "makes task.settings.optimizer.name Muon, and .*toy:build refuses",
        ),
    ],
)
def test_what_muloco_cannot_do_is_told_with_its_name(stated: str, told: str) -> None:
    with pytest.raises(ConfigError) as err:
        resolve(load(None, ["method.name=muloco", stated]).swarm)
    assert re.search(told, f"{err.value.message} {err.value.hint}")


def test_settings_of_an_optimizer_are_read_and_written() -> None:
    given = {"name": "SGD", "options": {"momentum": 0.9}}
    settings = read_settings({"optimizer": given})
    assert {key: write(settings)["optimizer"][key] for key in given} == given
    assert read_settings(write(settings)) == settings


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": "AdamWW"}, "torch.optim has .*AdamW,"),
        ({"name": "os.system"}, "class of torch.optim"),
        ({"name": "Optimizer"}, "torch.optim has"),
        ({"name": "LBFGS"}, "closure"),
        ({"name": "SparseAdam"}, "sparse"),
        ({"name": "SGD", "options": {"beta": 1}}, "momentum, dampening"),
        ({"name": "SGD", "options": {"momentum": -1.0}}, "momentum"),
        ({"name": "SGD", "options": "fast"}, "table"),
        ({"name": "bitsandbytes.AdamW9bit"}, "bitsandbytes"),
    ],
)
def test_what_cannot_step_is_refused_with_what_can(given: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as err:
        read_settings({"optimizer": given})
    assert re.search(told, f"{err.value.message} {err.value.hint}")


def test_eight_bit_state_steps_and_goes_on() -> None:
    pytest.importorskip("bitsandbytes")
    config = OptimizerConfig(name="bitsandbytes.AdamW8bit")
    (first, parameters), (second, others) = made(config, WIDE), made(config, WIDE)
    stepped(first, parameters, range(2))
    assert "dtype=torch.uint8" in repr(first.state_dict()["optimizer"]["wide"])
    second.load({key: value.clone() for key, value in first.parameters().items()})
    second.load_state_dict(first.state_dict())
    stepped(first, parameters, range(2, 4))
    stepped(second, others, range(2, 4))
    assert all(torch.equal(parameters[key], others[key]) for key in parameters)
