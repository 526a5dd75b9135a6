"""Fragments on their way between a device and the CPU: the values are those of one moment, whatever happens next."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from decentral.tensors.layout import Layout
from decentral.tensors.staging import Staging

CPU = torch.device("cpu")


def model(device: torch.device) -> dict[str, Tensor]:
    """Four layers of which one is in half precision and one is transposed."""
    values = torch.arange(24.0, device=device)
    return {
        "layers.0": values[:6].clone(),
        "layers.1": values[6:12].view(2, 3).clone(),
        "layers.2": values[12:18].view(2, 3).clone().t(),
        "layers.3": values[18:].to(torch.bfloat16),
    }


def staged(parameters: Mapping[str, Tensor], num_fragments: int, device: torch.device) -> tuple[Layout, Staging]:
    layout = Layout.of(parameters, num_fragments)
    return layout, Staging(layout, device)


@pytest.mark.parametrize("num_fragments", [1, 2, 4])
def test_what_is_taken_is_of_the_moment(num_fragments: int) -> None:
    parameters = model(CPU)
    layout, staging = staged(parameters, num_fragments, CPU)
    expected = [layout.gather(parameters, fragment) for fragment in range(num_fragments)]
    values = [staging.take(parameters, fragment) for fragment in range(num_fragments)]
    for value in parameters.values():
        value.fill_(-1.0)
    for values_N, expected_N in zip(values, expected, strict=True):
        taken_N = values_N()
        assert (taken_N.dtype, taken_N.device) == (torch.float32, CPU)
        assert torch.equal(taken_N, expected_N)


@pytest.mark.parametrize("num_fragments", [1, 4])
def test_what_is_taken_is_nobody_elses(num_fragments: int) -> None:
    """Also where a fragment is one whole parameter, already flat, float32 and on the CPU."""
    parameters = model(CPU)
    _, staging = staged(parameters, num_fragments, CPU)
    one_N, other_N = staging.take(parameters, 0)(), staging.take(parameters, 0)()
    one_N.fill_(-1.0)
    assert parameters["layers.0"].tolist() == [0, 1, 2, 3, 4, 5]
    assert other_N[:6].tolist() == [0, 1, 2, 3, 4, 5]


def test_what_is_put_is_there() -> None:
    parameters = model(CPU)
    layout, staging = staged(parameters, 1, CPU)
    values_N = torch.arange(24.0)
    there_N = staging.put(values_N)
    assert (there_N.device, there_N.tolist()) == (CPU, values_N.tolist())
    assert layout.scatter(there_N, 0).keys() == parameters.keys()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_values_are_of_the_moment_though_nobody_waits() -> None:
    gpu = torch.device("cuda", torch.cuda.current_device())
    large = {f"layers.{number}": torch.full((2048, 2048), float(number), device=gpu) for number in range(4)}
    _, staging = staged(large, 2, gpu)
    for repetition in range(8):
        # Work that is still queued when the copy is asked for, and work that overwrites what was copied.
        for value in large.values():
            value.copy_(value @ torch.eye(2048, device=gpu)).add_(1.0)
        values = [staging.take(large, fragment) for fragment in range(2)]
        for value in large.values():
            value.mul_(-1.0)
        taken = torch.cat([values_N() for values_N in values])
        assert sorted(set(taken.tolist())) == [repetition + 1.0 + number for number in range(4)]
        for value in large.values():
            value.mul_(-1.0)
    there_N = staging.put(taken)
    assert there_N.device == gpu
    assert torch.equal(there_N.cpu(), taken)
