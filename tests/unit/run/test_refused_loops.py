"""Training loops that a swarm cannot be part of are refused before anything is opened."""

import pickle

import pytest
import torch

from decentral.errors import ConfigError
from decentral.run.opening import found
from decentral.run.sharing import refuse_processes
from decentral.run.swarm import Swarm


def test_one_process_is_not_refused() -> None:
    refuse_processes(1)
    refuse_processes(0)
    with pytest.raises(ConfigError, match="3 processes or devices train this model together"):
        refuse_processes(3)


def test_a_process_group_founds_no_swarm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match="2 processes or devices"):
        found(torch.nn.Linear(2, 1))


def test_a_swarm_is_not_sent_to_another_process() -> None:
    with pytest.raises(ConfigError, match="cannot be sent to another"):
        pickle.dumps(Swarm.__new__(Swarm))
