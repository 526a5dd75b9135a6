"""Training loops that a swarm cannot be part of are refused before anything is opened."""

import pickle

import pytest

from decentral.errors import ConfigError
from decentral.run.sharing import check_processes
from decentral.run.swarm import Swarm


def test_a_trainer_of_other_processes_than_the_swarm_knows_is_refused() -> None:
    check_processes(1, 1)
    check_processes(4, 4)
    with pytest.raises(ConfigError, match="3 processes or devices train this model together, but the swarm knows of 1"):
        check_processes(3, 1)


def test_a_swarm_is_not_sent_to_another_process() -> None:
    with pytest.raises(ConfigError, match="cannot be sent to another"):
        pickle.dumps(Swarm.__new__(Swarm))
