"""Tiny models of transformers, a tokenizer and text, all made on the spot."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, PretrainedConfig, PreTrainedTokenizerFast

VOCAB, CONTEXT = 320, 32
WORDS = [
    "the",
    "one",
    "two",
    "red",
    "blue",
    "cat",
    "dog",
    "bird",
    "runs",
    "sleeps",
    "sees",
    "and",
    "under",
    "old",
    "small",
]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Text with something to learn in it."""
    draw = random.Random(seed)
    return [" ".join(draw.choice(WORDS) for _ in range(draw.randint(4, 12))) for _ in range(count)]


def write_rows(path: Path, count: int = 400, seed: int = 0) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(count, seed)))
    return path


def make_tokenizer(texts: Sequence[str] = (), vocab_size: int = VOCAB) -> PreTrainedTokenizerFast:
    """A BPE tokenizer trained on the spot, without texts on ``sentences``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts or sentences(200), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def make_config(kind: str, vocab_size: int = VOCAB, num_layers: int = 2) -> PretrainedConfig:
    """A tiny ``gpt2`` (without dropout), or a model of a family like ``llama`` (grouped queries, tied embedding)."""
    if kind != "gpt2":
        return AutoConfig.for_model(
            kind,
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
        )
    return GPT2Config(
        vocab_size=vocab_size,
        n_embd=32,
        n_layer=num_layers,
        n_head=2,
        n_positions=CONTEXT,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=1,
    )


def make_folder(folder: Path, kind: str = "llama", *, weights: bool = True, seed: int = 0, num_layers: int = 2) -> Path:
    """A model's folder as ``save_pretrained`` leaves it, or its configuration and tokenizer alone."""
    config = make_config(kind, num_layers=num_layers)
    if weights:
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
