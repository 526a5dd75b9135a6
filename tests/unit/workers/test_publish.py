"""The small GPT as transformers reads it: the same logits, the same bytes."""

from pathlib import Path

import pytest
import torch

from decentral.ports.trainer import Lineage, Seat
from decentral.workers import lm
from decentral.workers.lm.model import GPT
from decentral.workers.lm.settings import read_settings

transformers = pytest.importorskip("transformers")

SHAPE = {"d_model": 48, "num_layers": 3, "num_heads": 3, "context": 32, "rope_base": 500.0}


@pytest.mark.parametrize("tie", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_transformers_has_the_same_logits_and_bytes(tmp_path: Path, *, tie: bool) -> None:
    settings = {"model": {**SHAPE, "tie_embeddings": tie}}
    model = GPT(read_settings(settings).model, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, value in model.named_parameters():  # also of what begins as 0 or 1
            value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
    weights = {name: value.detach() for name, value in model.named_parameters()}
    publish = lm.publisher(settings, Seat(1, 2, 3))
    publish(tmp_path, Lineage("demo-1", "diloco", 3, 2.5), None)
    assert not list(tmp_path.iterdir())  # what lies there has names of its own
    publish(tmp_path, Lineage("demo-1", "diloco", 3, 2.5), weights)

    found, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(found).__name__ == "LlamaForCausalLM"
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "def grün(x):\n\treturn  '€'\x00"
    tokens = tokenizer(text, return_tensors="pt")["input_ids"]
    assert tokens.tolist() == [list(text.encode())]
    assert tokenizer.decode(tokens[0]) == text
    with torch.no_grad():
        torch.testing.assert_close(found.eval()(tokens).logits, model(tokens), rtol=0, atol=1e-5)
    continued = found.generate(tokens, max_new_tokens=4, do_sample=False)
    likeliest = model.generate(text.encode(), 4, temperature=1.0, top_k=1, generator=torch.Generator())
    assert bytes(continued[0, tokens.shape[1] :].tolist()) == likeliest
    card = (tmp_path / "README.md").read_text()
    assert "LlamaForCausalLM over bytes" in card
    assert "2.5000 nats" in card
