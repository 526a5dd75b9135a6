"""A model of transformers without its blocks: where these are, how it calls them, and what it computes around them.

Nothing is known of any architecture. The blocks are the longest list of modules of one kind, and the model's own
forward pass is run with a stand-in in the place of each: what it gives to a stand-in beside the hidden states (masks,
rotary positions) is what the block has to be given, what reaches the first one is the embedding, and what is put in the
place of the last one's answer goes through norm, output layer and loss as the model itself computes them.

Legend: B = sequences, T = tokens of a sequence, D = width.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from decentral.errors import ConfigError

#: Tokens of the sequence that a model is tried with.
_TRIED = 4
_HIDDEN = "hidden_states"


class Call(NamedTuple):
    """What a block is called with beside the hidden states, which come first or by name."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    by_name: bool

    def of(self, block: nn.Module, x_BTD: Tensor) -> Tensor:
        """What comes out of a block that is called like this."""
        found = block(**self.kwargs, hidden_states=x_BTD) if self.by_name else block(x_BTD, *self.args, **self.kwargs)
        return cast(Tensor, found[0] if isinstance(found, tuple) else found)


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the blocks of a model are."""

    path: str
    """Of their list; its numbers follow in the names of parameters."""
    num_blocks: int
    width: int
    """D."""
    answers_tuple: bool
    """Whether the model takes the hidden states out of a block's answer, as its first part."""

    def list_in(self, model: nn.Module) -> nn.ModuleList:
        """The list of the blocks."""
        return cast(nn.ModuleList, model.get_submodule(self.path))


def empty(config: PretrainedConfig) -> nn.Module:
    """The model without values; it takes no memory."""
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def find(config: PretrainedConfig) -> Cut:
    """The blocks of a model, after its forward pass was tried without them.

    Raises:
        ConfigError: there are none, or they are not called one after the other with hidden states alone.
    """
    model = empty(config)
    path = longest_list(model)
    if not path:
        raise _refused(config, "it has no list of two blocks or more of one kind")
    problem, blocks = "", _hollow(model, path, "cpu")
    num_blocks = len(blocks)
    for answers_tuple in (False, True):
        skeleton = Skeleton(model, Cut(path, num_blocks, 0, answers_tuple), blocks)
        try:
            width, problem = skeleton.tried()
        except Exception as err:  # of any model's own forward pass
            words = f"{type(err).__name__}: {' '.join(str(err).split())}"
            problem = problem or f"more comes out than hidden states ({words[:200]})"
            continue
        if not problem:
            return Cut(path, num_blocks, width, answers_tuple)
    raise _refused(config, f"of its {num_blocks} blocks in {path}, {problem}")


def _refused(config: PretrainedConfig, why: str) -> ConfigError:
    return ConfigError(
        f"The model {config.model_type} cannot be cut into stages: {why}.",
        hint="Leave --stages out, so that every worker has the whole model; or take one whose blocks follow each other "
        "and pass on hidden states alone, as those of Llama, Qwen, Mistral and GPT-2 do.",
    )


def longest_list(model: nn.Module) -> str:
    """The path to the longest list of modules of one class that lies in no other list; empty if there is none."""
    found: dict[str, int] = {}
    for path, module in model.named_modules():
        inner = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len({type(each) for each in module}) == 1 and not inner:
            found[path] = len(module)
    return max((path for path in found if found[path] > 1), key=lambda path: found[path], default="")


class Skeleton:
    """A model with stand-ins in the place of its blocks. One call at a time.

    Args:
        model: all but its blocks must have values.
        cut: where the blocks are.
        blocks: modules like these, with or without values: the model may read attributes of theirs.
    """

    def __init__(self, model: nn.Module, cut: Cut, blocks: Iterable[nn.Module]) -> None:
        self.model = model
        self._any = cast(Any, model)
        self._cut = cut
        layers = cut.list_in(model)
        for number, block in enumerate(blocks):
            layers[number] = _StandIn(block, lambda *call, number=number: self._meet(number, *call))
        self._calls: list[Call] = []
        self._seen: list[Tensor] = []
        self._injected: Tensor | None = None
        self._fresh = False

    def embed(self, ids_BT: Tensor, positions_BT: Tensor | None) -> Tensor:
        """What the model gives to its first block, [B, T, D]; with the positions of tokens, if these are said."""
        self._run(self._any.base_model, input_ids=ids_BT, **_said(positions_BT))
        return self._seen[0]

    def loss(self, y_BTD: Tensor, labels_BT: Tensor) -> Tensor:
        """The model's loss of what came out of its last block; labels are where their tokens are."""
        self._injected = y_BTD
        try:
            # Which tokens these are does not matter any more, only that there are as many.
            found = self._run(self.model, input_ids=labels_BT.clamp(min=0), labels=labels_BT)
        finally:
            self._injected = None
        return cast(Tensor, found.loss)

    @torch.no_grad()
    def calls(self, x_BTD: Tensor, positions_BT: Tensor | None) -> list[Call]:
        """How each block is called for hidden states of such a shape, whatever their values; see ``embed``."""
        ids_BT = torch.zeros(x_BTD.shape[:2], dtype=torch.long, device=x_BTD.device)
        self._run(self._any.base_model, input_ids=ids_BT, **_said(positions_BT))
        return self._calls

    def tried(self) -> tuple[int, str]:
        """D, and in words why blocks cannot be computed apart from the model; else nothing."""
        self._fresh = True
        ids = torch.zeros(1, _TRIED, dtype=torch.long)
        last: Tensor = self._run(self._any.base_model, input_ids=ids)[0]
        if self._order != list(range(self._cut.num_blocks)):
            return 0, f"{self._order[:8]} are called, and not each of them once, in order"
        for number, x in enumerate(self._seen):
            if number and x is not self._answers[number - 1]:
                return 0, f"block {number} is not given just what comes out of block {number - 1}"
            if x.ndim != 3 or x.shape[:2] != ids.shape:
                return 0, f"block {number} is given values of shape {list(x.shape)}, not of sequences, tokens and width"
        beside = [number for number, call in enumerate(self._calls) if any(t.requires_grad for t in _tensors(call))]
        if beside:
            return 0, f"block {beside[0]} is given more of the text than the hidden states"
        values = [self._seen[0], *self._answers]
        # Answers are leaves of their own: what the result follows from is what the model computes it of.
        *before, at_the_end = torch.autograd.grad(last.sum(), values, allow_unused=True)
        if at_the_end is None or any(found is not None for found in before):
            return 0, "it is not the last alone that the output is computed of"
        return self._seen[0].shape[-1], ""

    def _run(self, model: Any, **inputs: Tensor) -> Any:
        self._calls, self._seen, self._order, self._answers = [], [], list[int](), list[Tensor]()
        return model(**inputs, use_cache=False)

    def _meet(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A block's answer."""
        by_name = _HIDDEN in kwargs
        x = kwargs.pop(_HIDDEN) if by_name else args[0]
        self._order.append(number)
        self._seen.append(x)
        self._calls.append(Call(args[0 if by_name else 1 :], kwargs, by_name))
        y = x.detach().clone().requires_grad_() if self._fresh else x
        if number == self._cut.num_blocks - 1 and self._injected is not None:
            y = self._injected
        self._answers.append(y)
        return (y,) if self._cut.answers_tuple else y


class _StandIn(nn.Module):
    """In the place of a block, of whose attributes a model may read some."""

    def __init__(self, block: nn.Module, meet: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__()
        self.__dict__ |= {"_block": block, "_meet": meet}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._meet(args, kwargs)


def hollow(config: PretrainedConfig, cut: Cut, device: str) -> Skeleton:
    """A model that can say how its blocks are called, and takes no memory for its weights."""
    model = empty(config)
    return Skeleton(model, cut, _hollow(model, cut.path, device))


def _hollow(model: nn.Module, path: str, device: str) -> list[nn.Module]:
    """Values for a model's buffers, and one and the same zero for its parameters; returns its blocks untouched."""
    layers = cast(nn.ModuleList, model.get_submodule(path))
    blocks = list(layers)
    for number in range(len(layers)):
        layers[number] = nn.Identity()
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            zero = nn.Parameter(torch.zeros((), device=device).expand(value.shape))
            zero._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers leaves it as it is
            module.register_parameter(name, zero)
    buffers = [(module, name) for module in model.modules() for name, _ in module.named_buffers(recurse=False)]
    for module, name in buffers:
        setattr(module, name, torch.empty_like(module.get_buffer(name), device="cpu"))
    cast(Any, model).initialize_weights()  # of buffers, as nothing else is left that has no values
    for module, name in buffers:
        setattr(module, name, module.get_buffer(name).to(device))
    return blocks


def _said(positions_BT: Tensor | None) -> dict[str, Tensor]:
    """What a model is told of documents; of positions that are said, transformers makes the mask."""
    return {} if positions_BT is None else {"position_ids": positions_BT}


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested values."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
