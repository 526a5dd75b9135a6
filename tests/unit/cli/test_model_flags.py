"""What the flags of a model of transformers stand for."""

from pathlib import Path

import pytest

from decentral.cli.models import HF_TASK, ModelFlags, lora_flags
from decentral.errors import UsageError


def stated(flags: ModelFlags, *, founding: bool) -> dict[str, object]:
    return {key: value for key, value in flags.by_key(founding).items() if value is not None}


def test_a_founders_model_is_the_runs_and_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    found = stated(ModelFlags("model", "some/tokenizer", "rank=4", "some/data", "body", True), founding=True)
    assert found == {
        "task.factory": HF_TASK,
        "task.settings.model.name": str(tmp_path / "model"),
        "task.settings.model.from_scratch": True,
        "task.settings.model.config": "",
        "task.settings.model.digest": "",
        "task.settings.tokenizer.name": "some/tokenizer",
        "task.settings.tokenizer.digest": "",
        "task.settings.lora.rank": 4,
        "task.settings.lora.base_digest": "",
        "task.settings.data.dataset": "some/data",
        "task.settings.data.text_field": "body",
    }
    assert stated(ModelFlags("model", task="mine:build"), founding=True)["task.factory"] == "mine:build"


def test_a_joiners_are_its_own() -> None:
    flags = ModelFlags("some/model", "some/tokenizer", allow_download=True, task="mine:build")
    assert stated(flags, founding=False) == {
        "worker.model": "some/model",
        "worker.tokenizer": "some/tokenizer",
        "worker.allow_download": True,
        "worker.task": "mine:build",
    }


def test_an_adapter_in_words() -> None:
    assert lora_flags("rank=16,alpha=32,dropout=0.1,target=q_proj,v_proj") == {
        "lora.rank": 16,
        "lora.alpha": 32,
        "lora.dropout": 0.1,
        "lora.target": "q_proj,v_proj",
    }


@pytest.mark.parametrize("text", ["", "16", "alpha=3", "rank=4,ranks=3"])
def test_an_adapter_that_is_not_understood(text: str) -> None:
    with pytest.raises(UsageError, match="--lora"):
        lora_flags(text)
