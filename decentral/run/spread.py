"""A model that several processes train as one, for an engine that knows of one process.

Under DDP each process has all of it, under FSDP a shard, which is read and written only by all together: what the
engine asks on rank 0 is ordered on all ranks. One parameter goes after the other, so that beside its own shards no
device holds more than one of them whole. Knows no swarm.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from decentral.errors import MismatchError
from decentral.ports.trainer import Model, Stateful
from decentral.run.ranks import Ranks
from decentral.state import draws
from decentral.tensors.nested import Path, is_sharded, mapped, whole

_log = logging.getLogger(__name__)
#: The entry of a trainer's state that is one for all ranks; all others are each rank's own.
OPTIMIZER = "optimizer"
#: Where those of the ranks beside 0 are kept.
_OTHERS = "ranks"


class SpreadModel:
    """Implements the ports ``Model``, ``Spread`` and ``Stateful`` on rank 0; the other ranks ``obey``.

    Args:
        model: this rank's, of the same names and shapes on all.
        ranks: who trains it together.
        numbered: the parameters as the inner optimizer numbers them, if its state goes by numbers and not by names.
    """

    def __init__(self, model: Model, ranks: Ranks, numbered: Sequence[Tensor] = ()) -> None:
        self._model = model
        self._ranks = ranks
        self._numbered = numbered
        self._device = next(iter(model.parameters().values())).device

    def check(self) -> None:
        """Refuse ranks that do not train the same model. To be called by all.

        Raises:
            MismatchError: they differ; the first parameter that does is named.
        """
        mine = {name: f"{tuple(value.shape)} {value.dtype}" for name, value in self._model.parameters().items()}
        first = self._ranks.first((lambda: mine) if self._ranks.leads else None)
        self._ranks.all_do(lambda: _compare(first, mine, self._ranks.rank))

    # -- on rank 0 ----------------------------------------------------------------------------------------------------

    def parameters(self) -> Mapping[str, Tensor]:
        """See ``Spread``."""
        return self._model.parameters()

    def store(self, into: Mapping[str, Tensor]) -> None:
        """See ``Spread``. What every rank has whole is read here alone."""
        values = self._model.parameters()
        shards = [name for name in into if is_sharded(values[name])]
        if shards:
            self._ranks.tell("gather", shards)
        for name, place in into.items():
            place.copy_(self._whole(values[name]))

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """See ``Model``."""
        self._ranks.tell("load", list(parameters))
        self._load(parameters)

    def validate(self) -> float:
        """What rank 0 comes to, while all ranks validate."""
        self._ranks.tell("validate")
        return self._model.validate()

    def state_dict(self) -> Mapping[str, Any]:
        """See ``Stateful``: the optimizer's is that of all shards, as one process would have it."""
        self._ranks.tell("save")
        return self._save()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ``Stateful``; of one process or of any number of ranks."""
        others = list(state.get(_OTHERS, ()))
        has_optimizer = OPTIMIZER in state
        shapes = mapped(state.get(OPTIMIZER), lambda _, value: torch.empty_like(value, device="meta"))
        self._ranks.tell("resume", has_optimizer, shapes, others)
        own = {key: value for key, value in state.items() if key not in (OPTIMIZER, _OTHERS)}
        self._resume(has_optimizer, state.get(OPTIMIZER), own)

    # -- on the other ranks -------------------------------------------------------------------------------------------

    def obey(self, order: str, *given: Any) -> None:
        """Do the same as rank 0, which has told this."""
        match order, given:
            case "gather", (names,):
                values = self._model.parameters()
                for name in names:
                    self._whole(values[name])
            case "load", (names,):
                shapes = self._model.parameters()
                self._load({name: torch.empty(shapes[name].shape, device="meta") for name in names})
            case "validate", ():
                self._model.validate()
            case "save", ():
                self._save()
            case "resume", (has_optimizer, shapes, others):
                mine = others[self._ranks.rank - 1] if len(others) >= self._ranks.rank else None
                if mine is None:
                    _log.warning("there is no state of rank %d, which starts anew", self._ranks.rank)
                else:
                    draws.put_back(mine["draws"], str(self._device))
                self._resume(has_optimizer, shapes, {} if mine is None else mine["own"])
            case _:
                raise AssertionError(order)

    # -- on all -------------------------------------------------------------------------------------------------------

    def _whole(self, value: Tensor) -> Tensor:
        with self._ranks.together():
            return whole(value)

    def _load(self, values: Mapping[str, Tensor]) -> None:
        """Overwrite parameters by rank 0's values; elsewhere these have no memory, only a shape."""
        parameters = self._model.parameters()
        for name, value in values.items():
            like = parameters[name]
            self._model.load({name: self._deal(like, value, like.dtype)})

    def _deal(self, like: Tensor | None, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Rank 0's value: of a parameter as that one is, of anything else whole and on the CPU."""
        is_parameter = like is not None and like.shape == value.shape
        device = like.device if like is not None and is_parameter else torch.device("cpu")
        if self._ranks.leads:
            there = value.detach().to(device, dtype).contiguous()
        else:
            there = torch.empty(value.shape, dtype=dtype, device=device)
        if is_parameter and isinstance(like, DTensor):
            with self._ranks.together():
                return distribute_tensor(there, like.device_mesh, like.placements)
        return self._ranks.broadcast(there)

    def _save(self) -> Mapping[str, Any]:
        state = self._model.state_dict() if isinstance(self._model, Stateful) else {}
        leads = self._ranks.leads

        def kept(path: Path, value: Tensor) -> Tensor:
            all_of_it = self._whole(value.detach())
            return all_of_it.cpu() if leads or path[0] != OPTIMIZER else torch.empty(0)

        state = mapped(state, kept)
        own = {key: value for key, value in state.items() if key != OPTIMIZER}
        mine = None if leads else {"own": own, "draws": draws.taken(str(self._device))}
        others = self._ranks.collect(mine)[1:]
        return {**state, _OTHERS: others}

    def _resume(self, has_optimizer: bool, optimizer: Any, own: Mapping[str, Any]) -> None:
        named = self._model.parameters()

        def dealt(path: Path, value: Tensor) -> Tensor:
            like = named.get(path[0])
            if path[0] == "state" and path[1] in range(len(self._numbered)):
                like = self._numbered[path[1]]
            return self._deal(like, value, value.dtype)

        state = dict(own)
        if has_optimizer:
            state[OPTIMIZER] = mapped(optimizer, dealt)
        if isinstance(self._model, Stateful):
            self._model.load_state_dict(state)


def _compare(first: Mapping[str, str], mine: Mapping[str, str], rank: int) -> None:
    """Raises MismatchError unless both are equal, also in their order."""
    if list(first.items()) == list(mine.items()):
        return
    names = [name for name in {**first, **mine} if first.get(name) != mine.get(name)]
    name = names[0] if names else next(name for name, other in zip(first, mine, strict=True) if name != other)
    raise MismatchError(
        f"rank {rank} has another model than rank 0: {name!r} is {mine.get(name, 'not in it')}, and on rank 0 "
        f"{first.get(name, 'not in it') if names else 'at another place'}.",
        hint="All ranks of a worker train one model: make it alike on each.",
    )
