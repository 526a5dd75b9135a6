"""The programs of the adapters' pages run as they are printed, here with a swarm that only counts."""

from pathlib import Path
from typing import Any

import pytest
import torch

import decentral
from tests.support.pages import PAGES, before_the_swarm, program
from tests.unit.integrations.fake_swarm import FakeSwarm

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The `srun` command is available"),  # of a machine with Slurm
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found"),
]
#: An epoch has some rows less than a multiple of them; what counts is in the name of the test.
TOKENS = {"transformers": 8 * 64, "lightning": 32 * 9, "accelerate": 32}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_holds(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    swarms = []

    def found(model: Any, **given: Any) -> FakeSwarm:
        assert given.pop("optimizer", None) is None or page == "accelerate"
        assert given == {"rounds": 10, "settings": {"method.inner_steps": 20}}
        swarms.append(FakeSwarm(model, total_steps=6))
        return swarms[0]

    monkeypatch.setattr(decentral, "found", found, raising=False)
    torch.manual_seed(0)
    exec(compile(program(page), f"{page}.md", "exec"), {"__name__": "__main__"})
    (swarm,) = swarms
    assert swarm.tokens == [TOKENS[page]] * 6
    assert None not in swarm.losses
    assert swarm.calls[0] == "average"
    assert swarm.num_leaves >= 1
    assert f"Others join with: python train.py {swarm.address}" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_does_before_it_founds_is_a_program(page: str) -> None:
    assert "decentral.found" not in before_the_swarm(page)
    assert PAGES[page] in before_the_swarm(page)
