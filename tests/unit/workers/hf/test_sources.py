"""What a founder and a joiner read, and how it is refused."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from decentral.errors import ConfigError, DecentralError, IncapableError, MismatchError
from decentral.ports.trainer import Lineage, Seat
from decentral.workers import hf, machine
from decentral.workers.hf import sources
from decentral.workers.hf.model import config_from
from tests.support.hf import make_config, make_folder

SEAT = Seat(0, 0, 10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("model"))


def refused(settings: dict[str, Any]) -> DecentralError:
    with pytest.raises(DecentralError) as found:
        hf.resolve(settings)
    return found.value


def test_what_is_resolved_builds_the_model_without_its_folder(folder: Path) -> None:
    settings = hf.resolve({"model": {"name": str(folder)}})
    assert settings["seq_len"] == 32
    assert hf.resolve(settings) == settings
    nowhere = {**settings, "model": {**settings["model"], "name": "/gone"}}
    assert hf.resolve(nowhere) == nowhere
    assert config_from(settings["model"]["config"]).to_dict() | {"architectures": None} == make_config(
        "llama"
    ).to_dict() | {"architectures": None}
    hf.check(nowhere, "cpu")


def test_a_configuration_alone_is_enough_from_scratch(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, weights=False)
    found = hf.resolve({"model": {"name": str(folder / "config.json"), "from_scratch": True}})
    assert found["model"]["config"] == hf.resolve({"model": {"name": str(folder)}})["model"]["config"]


def test_what_a_founder_nobody_knows_writes_fetches_nothing() -> None:
    text = json.dumps(
        {
            **json.loads(make_config("llama").to_json_string(use_diff=False)),
            "auto_map": {"AutoModelForCausalLM": "evil--modeling.Evil"},
            "_attn_implementation": "somebody/kernels",
            "quantization_config": {"quant_method": "evil"},
        }
    )
    config = config_from(text)
    assert not hasattr(config, "auto_map")
    assert not hasattr(config, "quantization_config")
    assert config._attn_implementation != "somebody/kernels"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_type": "nosuch"}', '{"model_type": 3}'])
def test_an_architecture_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be built here"):
        config_from(text)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "t5"}, "t5, and no causal language model"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM, and no causal"),
        ({"model_type": "nosuch"}, "cannot be read"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert message in refused({"model": {"name": str(tmp_path)}}).message


@pytest.mark.slow
def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows(folder: Path, tmp_path: Path) -> None:
    make_config("gpt2", vocab_size=160).save_pretrained(tmp_path)
    error = refused({"model": {"name": str(tmp_path), "from_scratch": True}, "tokenizer": {"name": str(folder)}})
    assert "160 rows" in error.message
    assert "vocab_size of at least 317" in error.hint


@pytest.mark.slow
def test_another_tokenizer_than_the_swarms(folder: Path) -> None:
    settings = hf.resolve({"model": {"name": str(folder)}})
    settings["tokenizer"]["digest"] = 16 * "0"
    with pytest.raises(MismatchError, match="another vocabulary"):
        hf.build(settings, replace(SEAT, model=str(folder)))
    with pytest.raises(ConfigError, match="path of another machine"):
        hf.build(settings, SEAT)


@pytest.mark.slow
def test_too_little_memory_is_found_before_weights_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = hf.resolve({"model": {"name": str(folder)}})
    monkeypatch.setattr(machine, "available_bytes", lambda device: 2**16)
    monkeypatch.setattr(sources, "load_weights", lambda *args, **kwargs: pytest.fail("was read"))
    with pytest.raises(IncapableError, match="training 28,832 of 28,832"):
        hf.check(settings, "cpu")
    assert isinstance(refused({"model": {"name": str(folder)}, "lora": {"rank": 2}}), IncapableError)


def test_a_sequence_longer_than_the_model_sees(folder: Path) -> None:
    assert "at most 32 tokens" in refused({"model": {"name": str(folder)}, "seq_len": 64}).hint


@pytest.mark.slow
def test_weights_that_lack_parameters(folder: Path) -> None:
    config = make_config("llama")
    config.num_hidden_layers = 3
    with pytest.raises(ConfigError, match=r"lack 9 parameters .* model\.layers\.2"):
        sources.load_weights(str(folder), config, download=False)


RESPONSE: Any = SimpleNamespace(headers={}, request=None, status_code=401)


@pytest.mark.parametrize(
    ("cause", "download", "message", "hint"),
    [
        (GatedRepoError("gated", response=RESPONSE), True, "needs a Hugging Face token", "HF_TOKEN"),
        (RepositoryNotFoundError("none", response=RESPONSE), True, "no model some/model on the hub", "--model DIR"),
        (LocalEntryNotFoundError("offline"), True, "The hub cannot be reached", "hf download some/model --local-dir"),
        (LocalEntryNotFoundError("offline"), False, "nothing is downloaded unasked", "--allow-download"),
        (ValueError("set trust_remote_code=True"), True, "code of its own", "architecture"),
        (RuntimeError("boom"), True, "transformers' own words", "hf download"),
    ],
)
def test_the_hub_says_no(
    monkeypatch: pytest.MonkeyPatch, cause: Exception, download: bool, message: str, hint: str
) -> None:
    asked = []

    def fails(name: str, **kwargs: Any) -> None:
        asked.append(kwargs["local_files_only"])
        if isinstance(cause, ValueError):
            raise cause
        raise OSError("transformers' own words") from cause

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fails)
    with pytest.raises(ConfigError) as found:
        sources.read_config("some/model", download=download)
    assert asked == [not download]
    assert message in found.value.message
    assert hint in found.value.hint


def test_a_path_that_is_not_here() -> None:
    assert "There is no model at ./gone" in refused({"model": {"name": "./gone"}}).message
    assert "--model" in refused({}).hint


LORA = {"rank": 2, "alpha": 4, "target": "q_proj,v_proj"}


@pytest.mark.slow
class TestAdapter:
    """LoRA on a tiny Llama."""

    def settings(self, folder: Path, **lora: Any) -> dict[str, Any]:
        return hf.resolve({"model": {"name": str(folder)}, "lora": {**LORA, **lora}})

    def test_only_its_values_are_shared(self, folder: Path) -> None:
        settings = hf.read_settings(self.settings(folder))
        model = sources.load_weights(str(folder), config_from(settings.model.config), download=False)
        frozen = {name: value.clone() for name, value in model.state_dict().items()}
        adapted = hf.lora.with_adapter(model, settings.lora, 0)
        values = hf.lora.adapter_values(adapted)
        # Two layers, in each a q of 32 to 32 and a v of 32 to 2 heads of 8; a pair of matrices of rank 2 for each.
        assert sum(value.numel() for value in values.values()) == 2 * 2 * ((32 + 32) + (32 + 16))
        assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in values)
        assert hf._num_trained(settings, config_from(settings.model.config)) == 448
        assert len(frozen) == 21

    def test_other_base_weights_are_refused(self, folder: Path, tmp_path: Path) -> None:
        settings = hf.read_settings(self.settings(folder))
        other = sources.load_weights(
            str(make_folder(tmp_path, seed=1)), config_from(settings.model.config), download=False
        )
        with pytest.raises(MismatchError, match="base weights in DIR are others"):
            hf.lora.ensure_same_base(other, settings.lora.base_digest, "DIR")

    def test_a_target_that_matches_nothing_lists_the_layers(self, folder: Path) -> None:
        error = refused({"model": {"name": str(folder)}, "lora": {**LORA, "target": "q_proj,c_attn"}})
        assert "'c_attn'" in error.message
        assert "k_proj, lm_head, o_proj, q_proj" in error.hint

    def test_from_scratch_makes_no_sense(self, folder: Path) -> None:
        assert "--from-scratch" in refused({"model": {"from_scratch": True, "name": "x"}, "lora": LORA}).hint


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("lora", [False, True])
def test_what_is_published_is_read_back(tmp_path: Path, kind: str, lora: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from decentral.workers.hf import publish

    monkeypatch.setattr(publish, "MAX_SHARD", "20KB")  # several files and an index
    source, out = make_folder(tmp_path / "source", kind), tmp_path / "out"
    out.mkdir()
    settings = hf.resolve({"model": {"name": str(source)}, "lora": {"rank": 2 if lora else 0}})
    read = hf.read_settings(settings)
    model: Any = sources.load_weights(str(source), config_from(read.model.config), download=False)
    if lora:
        model = hf.lora.with_adapter(model, read.lora, 3)
        shared = hf.lora.adapter_values(model)
    else:
        shared = dict(model.named_parameters())
    with torch.no_grad():
        for value in shared.values():
            value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()))
    weights = {name: value.detach() for name, value in shared.items()}
    hf.publisher(settings, replace(SEAT, model=str(source)))(
        out, Lineage("demo-1", "diloco", 3, 2.5, 30, 1000, 2), weights
    )
    back = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(out)("the dog", return_tensors="pt")["input_ids"]
    torch.testing.assert_close(back(tokens).logits, model.eval()(tokens).logits)
    assert lora or (out / "model.safetensors.index.json").exists()
    assert back.generate(tokens, max_new_tokens=4, do_sample=False, pad_token_id=1).shape[1] > tokens.shape[1]
    card = (out / "README.md").read_text()
    for text in ("demo-1", "diloco", "1,000 by 2 workers", "2.5000 nats", *(["rank 2"] if lora else [])):
        assert text in card
    assert str(tmp_path) not in card
