import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decentral.errors import ConfigError, MismatchError
from decentral.tensors.layout import Layout, Pattern, Wanted, num_fragments_of

PATTERNS: list[Pattern] = ["strided", "sequential"]


def model(num_layers: int, *, width: int = 4, vocab: int = 11) -> dict[str, Tensor]:
    """Parameters of a small GPT, every value distinct."""
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (vocab, width)}
    for layer in range(num_layers):
        shapes[f"blocks.{layer}.attn.weight"] = (width, width)
        shapes[f"blocks.{layer}.norm.scale"] = (width,)
    shapes |= {"norm.scale": (width,), "temperature": ()}
    values, start = {}, 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape)
        values[name] = torch.arange(start, stop, dtype=torch.float32).view(shape)
        start = stop
    return values


def names(layout: Layout, fragment: int) -> list[str]:
    return [slot.name for slot in layout.fragments[fragment]]


@given(num_layers=st.integers(1, 9), data=st.data(), pattern=st.sampled_from(PATTERNS), vocab=st.integers(1, 50))
def test_gather_and_scatter_are_inverse(num_layers: int, data: st.DataObject, pattern: Pattern, vocab: int) -> None:
    parameters = model(num_layers, vocab=vocab)
    num_fragments = data.draw(st.integers(1, num_layers + 1))
    layout = Layout.of(parameters, num_fragments, pattern)

    restored: dict[str, Tensor] = {}
    for fragment in range(layout.num_fragments):
        flat_N = layout.gather(parameters, fragment)
        assert flat_N.shape == (layout.numel(fragment),)
        part = layout.scatter(flat_N, fragment)
        assert not part.keys() & restored.keys()
        restored |= part

    assert layout.num_fragments == num_fragments
    assert layout.total_numel == sum(value.numel() for value in parameters.values())
    assert restored.keys() == parameters.keys()
    assert all(torch.equal(restored[name], value) for name, value in parameters.items())


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("strided", [[0, 2, 4], [1, 3, 5], []]), ("sequential", [[0, 1, 2], [3, 4, 5], []])],
)
def test_patterns(pattern: Pattern, expected: list[list[int]]) -> None:
    layout = Layout.of(model(6), 3, pattern)
    dealt = [
        [int(name.split(".")[1]) for name in names(layout, fragment) if name.endswith("attn.weight")]
        for fragment in range(3)
    ]
    assert dealt == expected


def test_layers_are_ordered_by_number_not_by_text() -> None:
    parameters = {f"h.{layer}.w": torch.zeros(1) for layer in (10, 2, 9, 1)}
    layout = Layout.of(parameters, 2, "sequential")
    assert names(layout, 0) == ["h.2.w", "h.1.w"]
    assert names(layout, 1) == ["h.10.w", "h.9.w"]


def test_what_has_no_layer_is_apart_and_the_layers_are_balanced() -> None:
    parameters = {
        "embed": torch.zeros(10),
        "blocks.0.w": torch.zeros(8),
        "blocks.1.w": torch.zeros(3),
        "blocks.2.w": torch.zeros(4),
        "blocks.3.w": torch.zeros(2),
        "norm": torch.zeros(1),
    }
    # 8 | 3 -> 8 | 7 -> 8 | 9
    layout = Layout.of(parameters, 3)
    assert names(layout, 0) == ["blocks.0.w"]
    assert names(layout, 1) == ["blocks.1.w", "blocks.2.w", "blocks.3.w"]
    assert names(layout, 2) == ["embed", "norm"]


def test_one_fragment_needs_no_layers_and_keeps_the_order() -> None:
    parameters = {"b": torch.ones(2), "a": torch.zeros(1)}
    layout = Layout.of(parameters)
    assert names(layout, 0) == ["b", "a"]
    assert layout.gather(parameters, 0).tolist() == [1, 1, 0]


@pytest.mark.parametrize("num_fragments", [1, 3])
def test_what_belongs_to_a_layer(num_fragments: int) -> None:
    layout = Layout.of(model(4), num_fragments)
    for fragment in range(num_fragments):
        layered = layout.layered(fragment)
        slots = {(slot.start, slot.stop): slot.name for slot in layout.fragments[fragment]}
        assert [slots[bounds] for bounds in layered] == [n for n in names(layout, fragment) if n.startswith("blocks")]


def test_gather_accepts_any_float_and_any_strides() -> None:
    parameters = {
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "double": torch.tensor([0.1], dtype=torch.float64),
        "turned": torch.arange(6.0).view(2, 3).t(),
        "trained": torch.nn.Parameter(torch.ones(1)),
    }
    flat_N = Layout.of(parameters).gather(parameters, 0)
    assert flat_N.dtype == torch.float32
    assert not flat_N.requires_grad
    assert torch.equal(flat_N, torch.tensor([1.5, -2.0, 0.1, 0, 3, 1, 4, 2, 5, 1]))


def test_gather_is_a_copy_and_scatter_a_view() -> None:
    parameters = model(2)
    layout = Layout.of(parameters)
    flat_N = layout.gather(parameters, 0)
    before = parameters["embed.weight"].clone()
    layout.scatter(flat_N, 0)["embed.weight"].fill_(-1)
    assert torch.equal(parameters["embed.weight"], before)
    assert torch.equal(flat_N[:44], torch.full((44,), -1.0))


def test_signature_is_equal_for_equal_models() -> None:
    half = {name: value.bfloat16() for name, value in model(4).items()}
    assert Layout.of(model(4), 2) == Layout.of(half, 2)
    assert Layout.of(model(4), 2).signature == Layout.of(half, 2).signature
    assert Layout.of(model(1)).signature == "aed77c02f5d39eab"


def test_signature_tells_every_difference() -> None:
    base = model(4)
    renamed = {name.replace("norm", "ln"): value for name, value in base.items()}
    reordered = dict(reversed(base.items()))
    turned = base | {"embed.weight": base["embed.weight"].t()}
    layouts = [
        Layout.of(base),
        Layout.of(base, 2),
        Layout.of(base, 3),
        Layout.of(base, 3, "sequential"),
        Layout.of(base, 4),
        Layout.of(model(3)),
        Layout.of(renamed),
        Layout.of(reordered),
        Layout.of(turned),
    ]
    assert len({layout.signature for layout in layouts}) == len(layouts)


def test_more_fragments_than_the_layers_fill() -> None:
    with pytest.raises(ConfigError, match="5 fragments asked for, but the model has 3 layers"):
        Layout.of(model(3), 5)


@pytest.mark.parametrize(
    ("wanted", "max_fragments", "expected"),
    [("auto", 100, 8), ("auto", 5, 5), ("paper", 100, 4), ("paper", 3, 3), ("paper", 1, 1), (2, 100, 2), (99, 5, 99)],
)
def test_the_number_of_fragments(wanted: Wanted, max_fragments: int, expected: int) -> None:
    assert num_fragments_of(model(7), wanted, max_fragments) == expected


@given(num_layers=st.integers(0, 9), wanted=st.sampled_from(["auto", "paper"]), max_fragments=st.integers(1, 12))
def test_a_number_that_was_left_to_us_is_a_possible_one(num_layers: int, wanted: Wanted, max_fragments: int) -> None:
    num_fragments = num_fragments_of(model(num_layers), wanted, max_fragments)
    assert Layout.of(model(num_layers), num_fragments).num_fragments == num_fragments <= max_fragments


def test_no_parameters() -> None:
    with pytest.raises(ConfigError, match="no parameters"):
        Layout.of({})


def test_integers_cannot_be_averaged() -> None:
    with pytest.raises(ConfigError, match=r"'steps' is torch\.int64"):
        Layout.of({"w": torch.zeros(1), "steps": torch.zeros(1, dtype=torch.int64)})


def test_gather_names_the_parameter_that_changed_shape() -> None:
    layout = Layout.of(model(2))
    with pytest.raises(MismatchError, match=r"'blocks\.1\.norm\.scale' has shape \[5\], the layout has \[4\]"):
        layout.gather(model(2) | {"blocks.1.norm.scale": torch.zeros(5)}, 0)


def test_gather_does_not_broadcast() -> None:
    layout = Layout.of({"w": torch.zeros(3)})
    with pytest.raises(MismatchError, match="'w' has shape"):
        layout.gather({"w": torch.zeros(1)}, 0)


def test_gather_names_the_parameter_that_is_missing() -> None:
    layout = Layout.of(model(2))
    with pytest.raises(MismatchError, match=r"'blocks\.1\.attn\.weight' is missing"):
        layout.gather(model(1), 0)


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1)])
def test_scatter_refuses_another_size(shape: tuple[int, ...]) -> None:
    with pytest.raises(MismatchError, match="fragment 0 has 3 values"):
        Layout.of({"w": torch.zeros(3)}).scatter(torch.zeros(shape), 0)
