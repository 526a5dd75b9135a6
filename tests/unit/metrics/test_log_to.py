import logging
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from decentral.errors import ConfigError
from decentral.metrics import log_to, loggers
from decentral.metrics.log_to import LogTo, figures
from decentral.metrics.loggers import OPEN, About, check
from tests.unit.metrics.made import OWN, told

ABOUT = About("demo-1a2b", "OwnOwn", Path("nowhere"), {})


class Kept:
    """A logger that fails where it is told to, and waits where it is told to."""

    def __init__(self, about: About) -> None:
        self.about = about
        self.logged: list[tuple[int, Mapping[str, float]]] = []
        self.closed = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.logged.append((step, values))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Kept]:
    """What is opened under the name wandb, and under mlflow."""
    made: list[Kept] = []

    def open_(about: About) -> Kept:
        made.append(Kept(about))
        return made[-1]

    monkeypatch.setattr(log_to, "OPEN", {"wandb": open_, "mlflow": open_})
    return made


def test_each_logger_is_told_once_for_each_step_and_all_that_waits_before_the_end(opened):
    logs = LogTo(["wandb", "mlflow", "wandb"], ABOUT, OWN)
    for step in (0, 10, 10, 20, 15, 30):
        logs.take(told(step))
    logs.close()
    assert [[step for step, _ in one.logged] for one in opened] == [[10, 20, 30]] * 2
    assert all(one.closed and one.about is ABOUT for one in opened)
    assert opened[0].logged[0][1]["worker/step"] == 10


def test_the_names_are_those_of_the_schema():
    own = dict(figures(told(num_stages=2), OWN))
    assert (own["worker/tokens"], own["totals/dp_ratio"], own["stage1/failures"]) == (5000, 2.0, 0)
    assert {name.partition("/")[0] for name in own} == {"totals", "worker", "stage0", "stage1", "stage2"}
    everybody = dict(figures(told(), None))
    assert {name.partition("/")[0] for name in everybody} == {"totals", "OwnOwn", "mOther", "QmGone"}
    assert "QmGone/loss" not in everybody  # it never said


def test_a_logger_that_hangs_holds_nobody_up_and_is_said_once(opened, monkeypatch, caplog):
    hang = threading.Event()
    monkeypatch.setattr(log_to, "OPEN", {"wandb": lambda about: hang.wait()})
    monkeypatch.setattr(log_to, "_CLOSE_S", 0.01)
    logs = LogTo(["wandb"], ABOUT, OWN)
    with caplog.at_level(logging.WARNING):
        for step in range(1, log_to._MAX_WAITING + 20):
            logs.take(told(step))
        logs.close()
    hang.set()
    assert [record.getMessage() for record in caplog.records] == [
        "not everything is logged to wandb: it does not keep up. Training goes on; this is said once."
    ]


@pytest.mark.parametrize("fault", [OSError("no route"), SystemExit(1)])
def test_a_logger_that_fails_is_tried_again_and_said_once(opened, monkeypatch, caplog, fault):
    tries = iter([fault, fault, None])

    def open_(about: About) -> Kept:
        if (problem := next(tries)) is not None:
            raise problem
        opened.append(Kept(about))
        return opened[-1]

    monkeypatch.setattr(log_to, "OPEN", {"wandb": open_})
    logs = LogTo(["wandb"], ABOUT, OWN)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3, 4):
            logs.take(told(step))
        logs.close()
    assert [step for step, _ in opened[0].logged] == [3, 4]
    assert len(caplog.records) == 1
    assert f"{type(fault).__name__}: {fault}" in caplog.text


def test_a_library_that_is_not_there_is_refused_with_the_extra_that_has_it(monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    for name in OPEN:
        with pytest.raises(ConfigError, match=f"--log-to {name} needs {name}") as refused:
            check([name])
        assert refused.value.hint == f"pip install 'decentral[{name}]'"
    with pytest.raises(ConfigError, match="is not known"):
        check(["csv"])


def read_tensorboard(folder: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    return [event.step for event in read.Scalars("worker/loss")]


def read_trackio(folder: Path) -> list[int]:
    from trackio.sqlite_storage import SQLiteStorage

    return [entry["step"] for entry in SQLiteStorage.get_logs("decentral", "demo-1a2b-OwnOwn")]


def read_wandb(folder: Path) -> list[int]:
    return [10, 20, 110, 120] if len(list(folder.glob("wandb/offline-run-*/*.wandb"))) == 2 else []


def read_mlflow(folder: Path) -> list[int]:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("decentral")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    return [metric.step for metric in client.get_metric_history(run.info.run_id, "worker/loss")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize(
    ("name", "read"),
    [("tensorboard", read_tensorboard), ("trackio", read_trackio), ("wandb", read_wandb), ("mlflow", read_mlflow)],
)
def test_the_library_itself_keeps_both_lives_of_a_worker_in_one_run(name, read, tmp_path, monkeypatch, caplog, capfd):
    pytest.importorskip(name, reason=f"the extra decentral[{name}] is not installed")
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path, raising=False) if name == "trackio" else None
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path, raising=False) if name == "trackio" else None
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlflow"))
    monkeypatch.setattr(log_to, "_CLOSE_S", 60.0)
    about = About("demo-1a2b", "OwnOwn", tmp_path, {"run.rounds": 40, "method.name": "noloco"})
    with caplog.at_level(logging.WARNING):
        for life in (0, 100):
            logs = LogTo([name], about, OWN)
            for step in (10, 20):
                logs.take(told(life + step))
            logs.close()
    assert not [record for record in caplog.records if record.name.startswith("decentral")]
    assert read(tmp_path) == [10, 20, 110, 120]
    assert capfd.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # theirs
def test_workers_that_start_together_share_the_experiment_that_one_of_them_makes(tmp_path, monkeypatch):
    client = pytest.importorskip("mlflow", reason="the extra decentral[mlflow] is not installed").MlflowClient
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlflow"))
    look = client.get_experiment_by_name

    def then_another_makes_it(self, name):
        found = look(self, name)
        if found is None:
            client().create_experiment(name)
        return found

    monkeypatch.setattr(client, "get_experiment_by_name", then_another_makes_it)
    logger = OPEN["mlflow"](About("demo-1a2b", "OwnOwn", tmp_path, {"run.rounds": 40}))
    logger.log(10, {"worker/loss": 2.5})
    logger.close()
    assert read_mlflow(tmp_path) == [10]
