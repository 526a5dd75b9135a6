"""What a user is told of a fault of their own code."""

import inspect
import re

import pytest
import torch

from decentral.errors import ExitCode, ReportError, TrainerError


def broken_loader() -> None:
    raise KeyError("tokens")


def caught(work: object) -> Exception:
    assert callable(work)
    with pytest.raises(Exception) as raised:  # noqa: PT011
        work()
    return raised.value


def test_a_fault_is_named_by_type_text_and_place() -> None:
    fault = caught(broken_loader)
    error = TrainerError(fault, "taking inner steps 10 to 19")
    line = inspect.getsourcelines(broken_loader)[1] + 1
    assert error.message == (
        f"KeyError while taking inner steps 10 to 19 ({__file__}:{line}, in broken_loader): 'tokens'"
    )
    assert error.fault is fault
    assert error.exit_code is ExitCode.TRAINER
    assert "your own code" in error.hint


def test_the_line_that_called_a_library_is_the_one_to_look_at() -> None:
    def wrong_shapes() -> None:
        torch.nn.functional.layer_norm(torch.zeros(2, 3), (4,))

    error = TrainerError(caught(wrong_shapes), "taking inner step 0")
    assert re.search(r"test_errors\.py:\d+, in wrong_shapes\): ", error.message), error.message


def test_a_fault_that_was_never_raised_has_no_place() -> None:
    assert TrainerError(ValueError(), "validating").message == "ValueError while validating"


@pytest.mark.parametrize(
    ("fault", "device"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 1 has 8 GiB"),
            "cuda:1",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), "cuda"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 20.00 MiB"), "cpu"),
        (
            RuntimeError("MPS backend out of memory (allocated: 9 GB). Tried to allocate 20.00 MiB."),
            "mps",
        ),
        (MemoryError("Unable to allocate 20.00 MiB"), "cpu"),
    ],
)
def test_out_of_memory_names_the_device_what_was_tried_and_what_to_do(fault: Exception, device: str) -> None:
    error = TrainerError(fault, "taking inner step 3")
    assert error.message.startswith(f"out of memory on {device} while taking inner step 3: ")
    assert "20.00 MiB" in error.message
    assert "smaller batch" in error.hint


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "loss is None (NoneType): must be a number"),
        ("1.5", "loss is '1.5' (str): must be a number"),
        (torch.zeros(2), "loss is tensor([0., 0.]) (Tensor): must be a number"),
    ],
)
def test_a_wrong_report_is_refused_by_field_and_type(value: object, message: str) -> None:
    error = ReportError("loss", value, "a number")
    assert error.message == message
    assert error.exit_code is ExitCode.TRAINER


def test_a_long_value_is_cut() -> None:
    assert len(ReportError("tokens", list(range(1000)), "a count").message) < 150
