"""A small GPT over bytes: rotary positions, RMSNorm, SwiGLU, no biases. It knows nothing of data, optimizers or swarms.

Legend: B = sequences, T = positions, D = width of the model, H = heads, K = width of a head, F = width of the hidden
layer, V = 256 byte values. A suffix of several letters gives the axes in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from decentral.errors import ConfigError
from decentral.workers.settings import require

NUM_BYTES = 256
NORM_EPS = 1e-6
#: Names of the parameters that bytes are looked up in, on their way in and out.
ENDS = frozenset({"embedding", "head"})


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of the model. The defaults make 0.8 million parameters."""

    d_model: int = 128
    num_layers: int = 4
    num_heads: int = 4
    d_ff: int = 0
    """Width of the hidden layer; 0 for 8/3 of ``d_model``, rounded up to a multiple of 8."""
    context: int = 128
    """Bytes that the model sees at once."""
    tie_embeddings: bool = True
    """Whether the output layer is the embedding of the input."""
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built.

        Raises:
            ConfigError: with the key, its value, and what it may be.
        """
        for key in ("d_model", "num_layers", "num_heads", "context"):
            require(getattr(self, key) >= 1, f"model.{key}", getattr(self, key), "at least 1")
        require(self.d_ff >= 0, "model.d_ff", self.d_ff, "positive, or 0 for 8/3 of model.d_model")
        if self.d_model % (2 * self.num_heads):
            raise ConfigError(
                f"model.d_model is {self.d_model} with {self.num_heads} heads",
                hint="Rotary positions turn pairs of values: d_model must be a multiple of 2 * num_heads.",
            )
        require(self.rope_base > 1.0, "model.rope_base", self.rope_base, "above 1, commonly 10000")

    @property
    def hidden(self) -> int:
        """F, with the default filled in."""
        return self.d_ff or -(-8 * self.d_model // 24) * 8

    @property
    def num_parameters(self) -> int:
        """Trained values of the model, without building it."""
        return self.num_parameters_of(self.num_layers, ends=True)

    def num_parameters_of(self, num_layers: int, *, ends: bool) -> int:
        """Trained values of some layers, and of embedding, last norm and output layer with ``ends``."""
        layer = 4 * self.d_model**2 + 3 * self.d_model * self.hidden + 2 * self.d_model
        embeddings = NUM_BYTES * self.d_model * (1 if self.tie_embeddings else 2)
        return num_layers * layer + (self.d_model + embeddings if ends else 0)


def turns(config: ModelConfig, start: int, stop: int) -> Tensor:
    """``exp(i * angle)`` of positions start..stop, complex [T, 1, K/2]."""
    half = config.d_model // config.num_heads // 2
    speed_K = config.rope_base ** (-torch.arange(half) / half)
    angles_TK = torch.arange(start, stop)[:, None] * speed_K
    return torch.polar(torch.ones_like(angles_TK), angles_TK)[:, None]


def rotate(x_BTHK: Tensor, turn_TK: Tensor) -> Tensor:
    """Turn each pair of neighbouring head values by the angle of its position (RoPE, arXiv 2104.09864).

    Args:
        x_BTHK: queries or keys.
        turn_TK: ``exp(i * angle)``, complex [T, 1, K/2]. One complex product takes a third of the time of the four
            real ones on a CPU.
    """
    pairs = torch.view_as_complex(x_BTHK.float().reshape(*x_BTHK.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn_TK).flatten(-2).type_as(x_BTHK)


class Cache:
    """Keys and values of the positions that one layer has seen, for generation; at most ``context`` of them."""

    def __init__(self, context: int) -> None:
        self._context = context
        self._seen: tuple[Tensor, Tensor] | None = None

    def extend(self, key_BTHK: Tensor, value_BTHK: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values to attend to, the given ones last."""
        if self._seen is not None:
            key_BTHK = torch.cat((self._seen[0], key_BTHK), dim=1)[:, -self._context :]
            value_BTHK = torch.cat((self._seen[1], value_BTHK), dim=1)[:, -self._context :]
        self._seen = key_BTHK, value_BTHK
        return self._seen


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + SwiGLU(norm(x)).

    Its weights are not yet values: see ``initialise``.
    """

    turns: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, hidden = config.d_model, config.hidden
        self.num_heads = config.num_heads
        self.attention_norm = nn.Parameter(torch.empty(width))
        self.query_key_value = nn.Parameter(torch.empty(3 * width, width))
        self.attention_out = nn.Parameter(torch.empty(width, width))
        self.mlp_norm = nn.Parameter(torch.empty(width))
        self.gate = nn.Parameter(torch.empty(hidden, width))
        self.up = nn.Parameter(torch.empty(hidden, width))
        self.mlp_out = nn.Parameter(torch.empty(width, hidden))
        self.register_buffer("turns", turns(config, 0, config.context), persistent=False)

    def forward(self, x_BTD: Tensor, turn_TK: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """The residual stream after this layer, [B, T, D].

        Args:
            x_BTD: the residual stream before it; T is at most ``config.context``.
            turn_TK: turns of its positions; those from 0 on if not given.
            cache: keys and values of earlier positions, if there are any.
        """
        if turn_TK is None:
            turn_TK = self.turns[: x_BTD.shape[1]]
        x_BTD = x_BTD + self._attend(rms_norm(x_BTD, self.attention_norm), turn_TK, cache)
        normed_BTD = rms_norm(x_BTD, self.mlp_norm)
        hidden_BTF = functional.silu(functional.linear(normed_BTD, self.gate)) * functional.linear(normed_BTD, self.up)
        return x_BTD + functional.linear(hidden_BTF, self.mlp_out)

    def _attend(self, x_BTD: Tensor, turn_TK: Tensor, cache: Cache | None) -> Tensor:
        qkv = functional.linear(x_BTD, self.query_key_value).reshape(*x_BTD.shape[:2], 3, self.num_heads, -1)
        query_BTHK, key_BTHK, value_BTHK = qkv.unbind(dim=2)
        query_BTHK, key_BTHK = rotate(query_BTHK, turn_TK), rotate(key_BTHK, turn_TK)
        if cache is not None:
            key_BTHK, value_BTHK = cache.extend(key_BTHK, value_BTHK)
        mixed_BHTK = functional.scaled_dot_product_attention(
            query_BTHK.transpose(1, 2),
            key_BTHK.transpose(1, 2),
            value_BTHK.transpose(1, 2),
            is_causal=x_BTD.shape[1] > 1,  # A single position sees everything in the cache.
        )
        return functional.linear(mixed_BHTK.transpose(1, 2).flatten(2), self.attention_out)


def rms_norm(x_BTD: Tensor, weight_D: Tensor) -> Tensor:
    """``x / sqrt(mean(x^2) + 1e-6) * weight`` (RMSNorm, arXiv 1910.07467)."""
    return functional.rms_norm(x_BTD, weight_D.shape, weight_D, eps=NORM_EPS)


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Normal weights of standard deviation fan_in^-1/2; what writes to the residual stream starts at 0, norms at 1.

    An embedding far smaller than that (0.02 is common) is overwritten by its first few AdamW steps: with it the loss
    after 200 steps was 0.4 higher.

    Args:
        module: a model or a part of one.
        generator: on the CPU, so that every device starts from the same values.
    """
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            nn.init.ones_(parameter)
        elif name.endswith("_out"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)


def logits(x_BTD: Tensor, final_norm_D: Tensor, head_VD: Tensor) -> Tensor:
    """The output layer: logits of the next byte at every position, [B, T, V]."""
    return functional.linear(rms_norm(x_BTD, final_norm_D), head_VD)


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean cross-entropy in nats per byte, computed in fp32."""
    return functional.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())


class GPT(nn.Module):
    """The model.

    Args:
        config: its shape.
        generator: source of the initial weights (on the CPU, so that every device starts from the same ones).
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(NUM_BYTES, config.d_model))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.Parameter(torch.empty(config.d_model))
        self.head = None if config.tie_embeddings else nn.Parameter(torch.empty(NUM_BYTES, config.d_model))
        initialise(self, generator)

    def forward(self, bytes_BT: Tensor) -> Tensor:
        """Logits of the next byte at every position, [B, T, V]; T is at most ``config.context``."""
        return self._run(bytes_BT, None, [None] * len(self.blocks))

    def _run(self, bytes_BT: Tensor, turn_TK: Tensor | None, caches: Sequence[Cache | None]) -> Tensor:
        x_BTD = functional.embedding(bytes_BT, self.embedding)
        for block, cache in zip(self.blocks, caches, strict=True):
            x_BTD = block(x_BTD, turn_TK, cache)
        return logits(x_BTD, self.final_norm, self.embedding if self.head is None else self.head)

    def loss(self, window_BT: Tensor) -> Tensor:
        """Mean cross-entropy (nats per byte) of bytes 1..T given those before, for windows [B, T + 1] of integers."""
        return cross_entropy(self(window_BT[:, :-1]), window_BT[:, 1:])

    @torch.no_grad()
    def generate(
        self, prompt: bytes, num_bytes: int, *, temperature: float, top_k: int, generator: torch.Generator
    ) -> bytes:
        """Continue ``prompt`` by ``num_bytes`` bytes, seeing at most the last ``config.context`` of them.

        Args:
            prompt: at least one byte.
            num_bytes: how many to draw.
            temperature: above 0; below 1 sharpens the distribution.
            top_k: draw from this many likeliest bytes.
            generator: source of the draws, on the CPU.

        Returns:
            The new bytes alone.
        """
        device = self.embedding.device
        caches = [Cache(self.config.context) for _ in self.blocks]
        fresh, position = list(prompt[-self.config.context :]), 0
        drawn = bytearray()
        while len(drawn) < num_bytes:
            turn_TK = turns(self.config, position, position + len(fresh)).to(device)
            logits_V = self._run(torch.tensor([fresh], device=device), turn_TK, caches)[0, -1].float().cpu()
            position += len(fresh)
            values, indices = logits_V.topk(min(top_k, NUM_BYTES))
            choice = torch.multinomial((values / temperature).softmax(0), 1, generator=generator)
            fresh = [int(indices[choice])]
            drawn += bytes(fresh)
        return bytes(drawn)
