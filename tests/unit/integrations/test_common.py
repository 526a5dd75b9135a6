"""What the adapters have in common, apart from any library."""

from typing import Any

import pytest
import torch

from decentral.integrations.common import MicroBatches, catch_up, count_tokens

IDS = torch.zeros(2, 5, dtype=torch.long)
POINTS = torch.zeros(3, 7)


@pytest.mark.parametrize(
    ("batch", "num"),
    [
        (IDS, 10),
        (IDS.int(), 10),
        ((IDS, torch.zeros(2)), 10),
        ([POINTS, IDS], 3),
        (POINTS, 3),
        (torch.zeros(4, dtype=torch.long), 4),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), 4),
        (torch.zeros(2, 5, dtype=torch.cfloat), 2),
        ({"mask": POINTS, "input_ids": IDS}, 10),
        ({"pixels": POINTS, "labels": torch.zeros(3)}, 3),
        ({"names": ["a", "b"], "nested": {"x": (None, POINTS)}}, 3),
        (torch.tensor(3.0), 1),
        ("text", 1),
        (None, 1),
    ],
)
def test_tokens_are_whole_numbers_in_a_matrix_and_samples_otherwise(batch: Any, num: int) -> None:
    assert count_tokens(batch) == num


def scheduled(kind: Any, *args: Any) -> tuple[Any, Any]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    return optimizer, kind(optimizer, *args)


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        (torch.optim.lr_scheduler.CosineAnnealingLR, (50,)),
        (torch.optim.lr_scheduler.StepLR, (7,)),
        (torch.optim.lr_scheduler.OneCycleLR, (2.0, 50)),
    ],
)
def test_a_schedule_that_catches_up_is_where_steps_would_have_brought_it(kind: Any, args: tuple[Any, ...]) -> None:
    (walked, steps), (caught, behind) = scheduled(kind, *args), scheduled(kind, *args)
    for _ in range(23):
        walked.step()
        steps.step()
    catch_up(behind, 23)
    assert caught.param_groups[0]["lr"] == pytest.approx(walked.param_groups[0]["lr"])
    catch_up(behind, 20)  # never back
    assert caught.param_groups[0]["lr"] == pytest.approx(walked.param_groups[0]["lr"])


def test_a_schedule_by_a_measured_loss_does_not_catch_up() -> None:
    optimizer, scheduler = scheduled(torch.optim.lr_scheduler.ReduceLROnPlateau)
    catch_up(scheduler, 10)
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_losses_of_parts_count_as_they_were_when_they_were_told() -> None:
    told = []

    class Listener:
        def step(self, loss: torch.Tensor, tokens: int) -> None:
            told.append((loss.item(), tokens))

    batches, loss = MicroBatches(), torch.tensor(2.0)
    batches.add(loss, 10)
    loss.fill_(9.0)
    batches.report(Listener())  # type: ignore[arg-type]
    assert told == [(2.0, 10)]
