"""Two processes that are one worker: words, shards and states between them. They are forked, and share a file."""

import datetime
import multiprocessing
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from decentral.errors import ConfigError, ExitCode, MismatchError, RankError
from decentral.run import ranks as module
from decentral.run.handover import Stretch
from decentral.run.ranks import Ranks
from decentral.run.sharing import check_optimizer, model_of, shared_of
from decentral.run.spread import SpreadModel
from decentral.tensors.nested import is_sharded, whole

NUM_RANKS = 2


def together(folder: Path, work: Callable[[Ranks], Any]) -> list[Any]:
    """What each of two forked ranks comes to when they are together."""
    return in_group(folder, lambda: work(Ranks.form()))


def in_group(folder: Path, work: Callable[[], Any]) -> list[Any]:
    """What each of two forked processes of a process group comes to."""
    context = multiprocessing.get_context("fork")
    results: Any = context.SimpleQueue()

    def rank(number: int) -> None:
        torch.set_num_threads(1)
        try:
            store = dist.FileStore(str(folder / "store"), NUM_RANKS)
            deadline = datetime.timedelta(seconds=60)
            dist.init_process_group("gloo", store=store, rank=number, world_size=NUM_RANKS, timeout=deadline)
            results.put((number, work(), ""))
        except BaseException:
            results.put((number, None, traceback.format_exc()))

    processes = [context.Process(target=rank, args=(number,)) for number in range(NUM_RANKS)]
    for process in processes:
        process.start()
    found = sorted((results.get() for _ in processes), key=lambda each: each[0])
    for process in processes:
        process.join(30)
    assert not any(fault for _, _, fault in found), found
    return [result for _, result, _ in found]


def make_model() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


class Position:
    """A loader that every rank has of its own."""

    def __init__(self, at: int) -> None:
        self.at = at

    def state_dict(self) -> Mapping[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.at = state["at"]


def plain(value: Any) -> Any:
    """What a queue of another process can carry."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def spread_over(ranks: Ranks, *, shards: bool) -> tuple[nn.Module, Position, SpreadModel]:
    """A model that was trained for a step, each rank with a position of its own."""
    model, position = make_model(), Position(10 + ranks.rank)
    if shards:
        fully_shard(model, mesh=init_device_mesh("cpu", (NUM_RANKS,)))
    trained = model if shards else nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    train(trained, optimizer)
    port = model_of(trained, "local", None, optimizer, {"loader": position})
    return model, position, SpreadModel(port, ranks, list(model.parameters()))


def life(ranks: Ranks, *, shards: bool) -> Any:
    """Read, overwritten, kept, and set back from what was kept; what rank 0 read, and what each has afterwards."""
    model, position, spread = spread_over(ranks, shards=shards)
    assert any(map(is_sharded, model.parameters())) is shards
    spread.check()
    read: list[Any] = []
    if ranks.leads:
        parameters = spread.parameters()
        into = {name: torch.empty(value.shape) for name, value in parameters.items()}
        spread.store(into)
        spread.load({"2.bias": torch.tensor([7.0])})
        state = spread.state_dict()
        read = [plain(into), plain(state)]
        again = {**state, "loader": {"at": 100}, "ranks": [{**state["ranks"][0], "own": {"loader": {"at": 101}}}]}
        spread.load_state_dict(again)
        read.append(plain(spread.state_dict()["optimizer"]) == plain(state["optimizer"]))
        ranks.tell("end")
    else:
        while (words := ranks.hear())[0] != "end":
            spread.obey(*words)
    return read, [whole(p).tolist() for p in model.parameters()], position.at


@pytest.mark.parametrize("shards", [False, True])
def test_ranks_have_together_what_one_process_has(tmp_path: Path, *, shards: bool) -> None:
    alone = make_model()
    optimizer = torch.optim.AdamW(alone.parameters(), lr=0.1)
    train(alone, optimizer)
    (read, first, at), (_, second, other_at) = together(tmp_path, lambda ranks: life(ranks, shards=shards))
    values, state, comes_back = read
    assert values == {name: value.tolist() for name, value in alone.named_parameters()}
    assert state["optimizer"] == plain(optimizer.state_dict())  # one process could go on from it
    assert (state["loader"], state["ranks"][0]["own"]) == ({"at": 10}, {"loader": {"at": 11}})
    assert comes_back
    assert first == second
    assert first[:3] == [value.tolist() for value in alone.parameters()][:3]
    assert first[3] == [7.0]
    assert (at, other_at) == (100, 101)


def test_ranks_with_different_models_are_told_which_parameter_it_is(tmp_path: Path) -> None:
    def refused(ranks: Ranks) -> tuple[str, str, int]:
        model = nn.Linear(3, 2 + ranks.rank)
        with pytest.raises((MismatchError, RankError)) as raised:
            SpreadModel(model_of(model, "local", None, None, None), ranks).check()
        return type(raised.value).__name__, raised.value.message, int(raised.value.exit_code)

    (kind, words, code), (other_kind, other_words, other_code) = together(tmp_path, refused)
    assert (kind, other_kind) == ("RankError", "MismatchError")
    assert words == f"Rank 1: {other_words}"
    assert "'weight' is (3, 3) torch.float32, and on rank 0 (2, 3) torch.float32" in words
    assert code == other_code == ExitCode.MISMATCH


def test_a_rank_that_is_gone_is_noticed_and_stays_gone(tmp_path: Path) -> None:
    def left_alone(ranks: Ranks) -> list[str]:
        if not ranks.leads:
            ranks.hear()  # rank 0 is ready: who leaves sooner is noticed as they form
            ranks.part("left")
            return []
        ranks.tell("ready")
        said = []
        for _ in range(2):
            with pytest.raises(RankError) as raised:
                ranks.collect("anything")
            said.append(raised.value.message)
        return said

    said, _ = together(tmp_path, left_alone)
    assert said[0] == said[1]
    assert said[0].startswith("Another rank of this worker has ended, or hangs")


def test_a_rank_that_leaves_while_another_forms_is_said_to_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = module._group

    def one_leaves() -> str:
        if dist.get_rank():
            monkeypatch.setattr(
                module, "_group", lambda deadline_s: make(deadline_s) if deadline_s == module.FORM_S else None
            )
            Ranks.form()
            return ""
        with pytest.raises(RankError) as raised:
            Ranks.form()
        return raised.value.message

    monkeypatch.setattr(module, "DEADLINE_S", 0.2)
    said, _ = in_group(tmp_path, one_leaves)
    assert said.startswith("Another rank of this worker has ended, or hangs")


def test_a_rank_that_has_come_and_left_is_not_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can end while another one still connects to it."""

    def closed(deadline_s: float) -> NoReturn:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(module, "_group", closed)
    with pytest.raises(RankError, match="Another rank of this worker has ended"):
        Ranks.form()


def test_a_rank_that_does_not_come_is_waited_for_until_a_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FORM_S", 0.2)

    def one_comes() -> str:
        if dist.get_rank():
            return ""
        with pytest.raises(RankError) as raised:
            Ranks.form()
        return raised.value.message

    said, _ = in_group(tmp_path, one_comes)
    assert said == ("Not all of the 2 ranks came to found, join or resume within 0 s of each other; rank 0 did.")


def test_tokens_weigh_the_losses_of_ranks() -> None:
    first, second = Stretch(), Stretch()
    for tokens, loss in ((10, 1.0), (30, 2.0)):
        first.add(tokens, loss, grad_norm=0.5)
        second.add(3 * tokens, torch.tensor(loss + 1), grad_norm=0.5)
    report = Stretch.of_ranks([first.sums(), second.sums()]).report()
    assert report.tokens == 40 + 120
    assert report.loss == pytest.approx((10 * 1 + 30 * 2 + 30 * 2 + 90 * 3) / 160)
    assert report.grad_norm == 0.5


def test_what_compile_puts_around_a_model_is_no_part_of_its_names() -> None:
    model, around = nn.Linear(2, 1), nn.Module()
    around._orig_mod = model
    assert list(shared_of(around).tensors) == ["weight", "bias"]


def test_an_optimizer_of_a_shard_without_values_is_known(tmp_path: Path) -> None:
    def checked(ranks: Ranks) -> bool:
        model = nn.Linear(1, 1, bias=False)
        fully_shard(model, mesh=init_device_mesh("cpu", (NUM_RANKS,)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        check_optimizer(optimizer, dict(model.named_parameters()))
        with pytest.raises(ConfigError, match="trains none of the model's shared parameters"):
            check_optimizer(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1), dict(model.named_parameters()))
        return True

    assert together(tmp_path, checked) == [True, True]
