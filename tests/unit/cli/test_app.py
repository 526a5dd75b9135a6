"""Commands through the runner: what they print where, and how they end. No network is involved."""

import asyncio
import io
import itertools
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from decentral import PROTOCOL, __version__
from decentral.cli.app import app
from decentral.cli.version import commit
from decentral.errors import (
    ConfigError,
    DataError,
    DecentralError,
    DivergedError,
    ExitCode,
    IdentityError,
    IncapableError,
    MismatchError,
    PortTakenError,
    ProtocolError,
    UnreachableError,
    UsageError,
    WrongPeerError,
)
from decentral.monitor.report import RunFacts
from decentral.monitor.status import summarize
from decentral.swarm.presence import Metrics, Presence, State
from decentral.types import PeerId


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def running(monkeypatch):
    """What runs workers and asks swarms: notes what it is called with."""
    module = ModuleType("decentral.run.worker")
    module.calls = []

    def run_worker(start, announce_join, stop):
        module.calls.append((start.swarm, start.own, start.join, start.explicit))
        announce_join("203.0.113.7:31337")
        return 0

    module.run_worker = run_worker
    monkeypatch.setitem(sys.modules, "decentral.run.worker", module)
    return module


@pytest.fixture
def answers(monkeypatch):
    """Makes the swarm answer with the given records."""

    def answer(*rows):
        async def ask_status(addresses, timeout_s):
            return summarize(RunFacts("demo", "diloco", "int8-b128", 9, 1, "0.1", "c0"), rows, ttl_s=6.0)

        monkeypatch.setattr("decentral.run.asking.ask_status", ask_status)

    return answer


def record(name: str, state: State = State.TRAINING, reason: str = "") -> tuple[Presence, float]:
    return Presence(PeerId(name), "demo", 1, state, 3, 0, "d", metrics=Metrics(loss=2.5, reason=reason)), 0.5


TOY = ("--set", "task.factory=decentral.workers.toy:build")


def test_a_worker_goes_on_when_nobody_can_read_how_others_join():
    program = "from decentral.cli import worker; worker._announce_join('203.0.113.7:31337')"
    with Path("/dev/full").open("w") as full:  # as a file on a disk without room
        ended = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr.split("(")[0]) == (0, "cannot print how others join ")


@pytest.mark.parametrize(("built_from", "shown"), [("0123abc", " (0123abc)"), ("", "")])
def test_the_version_names_release_commit_and_protocol(monkeypatch, built_from, shown):
    monkeypatch.setattr("decentral.cli.app.commit", lambda: built_from)
    assert run("--version").stdout == f"decentral {__version__}{shown}, protocol {PROTOCOL}\n"


def test_the_commit_is_what_the_build_noted_or_git_knows(monkeypatch, tmp_path):
    package = tmp_path / "decentral"
    package.mkdir()
    monkeypatch.setattr("decentral.cli.version._PACKAGE", package)
    assert commit() == ""
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), (*identity, "commit", "-q", "--allow-empty", "-m", "one")):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    head = subprocess.run(["git", "-C", tmp_path, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert commit() == head.stdout[:12]
    (package / "commit.txt").write_text("f" * 40 + "\n")
    assert commit() == "f" * 12


def test_importing_the_app_imports_neither_torch_nor_hivemind():
    code = "import sys, decentral.cli.app; sys.exit(bool({'torch', 'hivemind'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message", "hint", "code"),
    [
        (["worker"], "None of --new, --join and --resume is given.", "decentral worker --new", 2),
        (["worker", "--new", "--join", "a:1"], "--new and --join exclude each other.", "", 2),
        (["worker", "--join", ""], "--join is empty.", "Is the variable set? To found a new swarm use --new.", 2),
        (["worker", "--join", "a:1", "--join", "  "], "--join is empty.", "--new", 2),
        (["worker", "--new", "stray"], "Unexpected argument 'stray'.", "--data", 2),
        (["worker", "--new", "--data", ""], "--data has an empty path.", "variable", 2),
        (["worker", "--new", "--set", "run.round=3"], "unknown key 'run.round'", "'run.rounds'", 3),
        (["worker", "--new", "--rounds", "0"], "run.rounds = 0: must be a whole number, at least 1", "", 3),
        (["worker", "--new", "--port", "99999"], "worker.port = 99999", "", 3),
        (["worker", "--new", "--device", "tpu"], 'worker.device = "tpu": must be cpu, mps, cuda or cuda:N', "", 3),
        (["worker", "--new", "--config", "none.toml"], "Cannot read the configuration none.toml", "", 3),
        (["worker", "--new", "--set", "task.factory=nope:build"], "nope cannot be imported", "", 3),
        (["worker", "--new", *TOY, "--set", "task.settings.numl=3"], "numl", "numel", 3),
        (["worker", "--new", "--resume", "a"], "--new and --resume exclude each other.", "go on with a run", 2),
        (["worker", "--resume", "a", "--join", ""], "--join is empty.", "--new", 2),
        (["worker", "--resume", "a", "--out", "b"], "--resume and --out exclude each other.", "its own folder", 2),
        (["worker", "--resume", "a", "--overwrite"], "--resume and --overwrite exclude each other.", "copy that", 2),
        (["worker", "--resume", "a"], "There is no run to resume in a: it is no folder.", "--new --out a", 3),
        (["worker", "--new", "--method", "nolco"], '"nolco": must be one of local-sgd, diloco', "'noloco'", 3),
        (
            ["local", "--method", "paper"],
            '"paper": must be one of local-sgd, diloco, muloco, streaming, eager, sparseloco, noloco, async',
            "mean",
            3,
        ),
        (
            ["local", "--method", "noloco", "--set", "method.gamma=2"],
            "above 0.5 and below 1.5 for groups of n = 2",
            "",
            3,
        ),
        (["worker", "--new", "--fragments", "some"], 'method.fragments = "some": must be a whole number', "", 3),
        (["worker", "--new", "--overlap", "3"], "method.delay_steps is 3, which must be below", "", 3),
        (["local", "--mix", "2"], "method.mix_alpha = 2: must be a number, at least 0 and at most 1, or auto", "", 3),
        (["worker", "--join", "a:1", "--max-upload", "20"], 'worker.max_upload = "20": it has no unit', "", 3),
        (["local", "--max-upload", "9kbit"], "9kbit is less than 400kbit", "", 3),
        (
            ["worker", "--new", *TOY, "--stages", "4"],
            "decentral.workers.toy has no function blocks",
            "docs/tasks.md",
            3,
        ),
        (
            ["worker", "--new", "--set", "method.preset=short"],
            "--set: there is no method.preset any more.",
            'Write method.name = "local-sgd" (or --method local-sgd)',
            3,
        ),
        (["local", "--method", "short"], 'method.name = "short": must be one of', "Did you mean 'local-sgd'?", 3),
        (["worker", "--new", "--set", "task.factory="], "This run names no task", "--task MODULE:FUNCTION", 3),
        (["local", "--set", "task.factory="], "This run names no task", "--task MODULE:FUNCTION", 3),
        (["worker", "--join", "a:1", "--set", "worker.task=mine"], 'worker.task = "mine": must be the dotted', "", 3),
        (["worker", "--new", "--set", "worker.task=nope:build"], "nope cannot be imported", "Install the package", 3),
        (["worker", "--new", "--stages", "9"], "a model of 4 blocks cannot be cut into 9 stages", "1 up to 4", 3),
        (
            ["worker", "--new", "--stages", "3", "--set", "pipeline.recovery=checkfree"],
            "pipeline.recovery is 'checkfree', which needs equal stages",
            "'checkpoint'",
            3,
        ),
        (
            ["worker", "--new", "--stages", "4", "--set", "pipeline.microbatches=7"],
            "batch_sequences is 16 with 7 micro-batches",
            "multiple of pipeline.microbatches",
            3,
        ),
        (["worker", "--new", "--stages", "4", "--stage", "9"], "stages 0 (the head) to 4", "Leave --stage out", 3),
        (["worker", "--new", "--stages", "4", "--stage", "spare"], "somebody must have the head", "--stage", 3),
        (["worker", "--new", "--stage", "2"], "worker.stage is 2, but the swarm has no pipeline", "--stages", 3),
        (["worker", "--join", "a:1", "--stage", "0-x"], 'worker.stage = "0-x": must be a stage such as 2', "", 3),
        (["worker", "--new", "--replicas", "2"], "pipeline.replicas is 2, but pipeline.stages is 0", "", 3),
        (["local", "--stages", "4", "--workers", "5"], "--workers and a pipeline exclude each other", "--spares", 2),
        (["local", "--spares", "2"], "--spares is for a pipeline, and there is none", "--stages", 2),
        (["local", "--stages", "2", *TOY], "decentral.workers.toy has no function blocks", "docs/tasks.md", 3),
        (["local", "--stages", "4", "--result", "best"], "--result best is not known.", "average or newest", 2),
        (["local", "--stages", "4", "--set", "worker.stage=2"], "every stage finds a worker by itself", "", 2),
        (["status", ""], "The address is empty.", "variable", 2),
        (
            ["local", "--result", "4"],
            "--result 4 is not known.",
            "Take average, best, newest, or a worker from 0 to 3.",
            2,
        ),
        (["export", "", "--out", "x"], "A source is empty.", "variable", 2),
        (["local", "--minutes", "1", "--tokens", "1"], "--minutes and --tokens exclude each other.", "", 2),
        (["local", "--minutes", "0"], "--minutes and --tokens must be above 0.", "", 2),
        (["local", "--tokens", "0"], "--minutes and --tokens must be above 0.", "", 2),
        (["local", "--set", "run=3"], "run is a section", "", 3),
    ],
)
def test_a_mistake_on_the_command_line_has_its_own_text_and_code(
    tmp_path, monkeypatch, running, arguments, message, hint, code
):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.stdout == ""
    first, *rest = result.stderr.splitlines()
    assert first.startswith("error: ")
    assert message in first
    assert hint in "\n".join(rest)
    assert "Traceback" not in result.stderr
    assert result.exit_code == code
    assert running.calls == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (DecentralError, 1),
        (UsageError, 2),
        (ConfigError, 3),
        (DataError, 4),
        (UnreachableError, 5),
        (WrongPeerError, 6),
        (ProtocolError, 7),
        (MismatchError, 8),
        (PortTakenError, 9),
        (IdentityError, 10),
        (IncapableError, 11),
        (DivergedError, 12),
    ],
)
def test_every_error_ends_in_its_documented_code(running, request, tmp_path, kind, code):
    def run_worker(*_):
        raise kind("What happened.", hint="What to do.")

    running.run_worker = run_worker
    result = run("worker", "--join", "a:1", "--out", str(tmp_path))
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == "error: What happened.\nhint: What to do.\n"
    assert (
        f"## Exit code {code}: {ExitCode(code).name}\n"
        in (request.config.rootpath / "docs" / "exit-codes.md").read_text()
    )


def test_a_fault_of_our_own_shows_its_traceback_only_with_debug(running, tmp_path):
    def run_worker(*_):
        raise RuntimeError("oops")

    running.run_worker = run_worker
    quiet = run("worker", "--join", "a:1", "--out", str(tmp_path))
    assert quiet.exit_code == ExitCode.INTERNAL
    assert quiet.stderr.startswith("error: RuntimeError: oops\nhint: This is a fault of decentral's own. Run it again")
    loud = run("worker", "--join", "a:1", "--out", str(tmp_path), "--debug")
    assert "Traceback" in loud.stderr
    assert "--debug" not in loud.stderr.partition("hint:")[2]


def test_the_founder_prints_the_join_command_as_its_first_line(running, tmp_path):
    result = run("worker", "--new", *TOY, "--out", str(tmp_path), "--rounds", "7")
    assert result.exit_code == 0
    assert result.stdout == "decentral worker --join 203.0.113.7:31337\n"
    ((swarm, worker, join, explicit),) = running.calls
    assert join == []
    assert swarm.run.rounds == 7
    assert swarm.task.settings["numel"] == 1000
    assert worker.out == str(tmp_path)
    assert explicit == {"task.factory": "decentral.workers.toy:build", "run.rounds": 7}


def test_a_joiner_states_only_what_the_user_did(running, tmp_path):
    run("worker", "--join", "a:1", "--join", "b:2", "--out", str(tmp_path), "--set", "run.seed=3", "--data", "x", "y")
    ((swarm, worker, join, explicit),) = running.calls
    assert swarm is None
    assert join == ["a:1", "b:2"]
    assert worker.data == ("x", "y")
    assert explicit == {"run.seed": 3}


def test_the_method_of_a_founder_and_of_a_joiner(running, tmp_path):
    run("worker", "--new", *TOY, "--out", str(tmp_path), "--method", "noloco")
    run("worker", "--join", "a:1", "--out", str(tmp_path), "--method", "noloco")
    (swarm, *_), (*_, explicit) = running.calls
    assert (swarm.method.name, swarm.method.inner_steps) == ("noloco", 50)
    assert explicit == {"method.name": "noloco"}


def test_a_founder_that_states_no_method_has_one_that_fits_the_internet(running, tmp_path, monkeypatch):
    # Steps of a millisecond, whatever else this machine does.
    monkeypatch.setattr("decentral.run.sizing.time", SimpleNamespace(perf_counter=itertools.count(0, 0.001).__next__))
    monkeypatch.setattr("decentral.run.sizing.waited_for_core_s", lambda: 0.0)
    result = run("worker", "--new", *TOY, "--out", str(tmp_path), "--codec", "fp32")
    ((swarm, *_, explicit),) = running.calls
    assert swarm.method.inner_steps >= 10
    assert (swarm.method.codec, swarm.method.mean_codec) == ("fp32", "fp32")
    assert f"inner_steps {swarm.method.inner_steps}" in result.stderr
    assert "1k values" in result.stderr
    assert not {"method.name", "method.inner_steps"} & explicit.keys()  # a joiner need not have chosen the same


def test_overlap_of_a_founder_and_of_a_joiner(running, tmp_path):
    flags = (
        "--out",
        str(tmp_path),
        "--fragments",
        "paper",
        "--overlap",
        "2",
        "--mix",
        "auto",
        "--max-upload",
        "20mbit",
    )
    run("worker", "--new", *TOY, *flags)
    run("worker", "--join", "a:1", *flags)
    (swarm, founder, *_), (_, joiner, _, explicit) = running.calls
    assert (swarm.method.fragments, swarm.method.delay_steps, swarm.method.mix_alpha) == ("paper", 2, 0.5)
    assert explicit == {"method.fragments": "paper", "method.delay_steps": 2}
    assert founder.max_upload == joiner.max_upload == 2_500_000


def test_the_pipeline_of_a_founder_and_of_a_joiner(running, tmp_path):
    out = ("--out", str(tmp_path))
    run("worker", "--new", *out, "--stages", "4", "--replicas", "2", "--stage", "0-1")
    run("worker", "--join", "a:1", *out, "--stages", "4", "--stage", "spare")
    (swarm, founder, *_), (_, joiner, _, explicit) = running.calls
    assert (swarm.pipeline.stages, swarm.pipeline.replicas, swarm.pipeline.recovery) == (4, 2, "checkfree+")
    assert (founder.stage, joiner.stage) == ("0-1", "spare")
    assert explicit == {"pipeline.stages": 4}


def test_the_data_of_a_founder_is_the_data_of_the_run(running, tmp_path):
    run("worker", "--new", *TOY, "--out", str(tmp_path), "--data", "x", "y", "--data", "z")
    swarm, worker, *_ = running.calls[0]
    assert set(swarm.data.paths) == {"x", "y", "z"}
    assert set(worker.data) == {"x", "y", "z"}  # its user has named them on this machine


def test_a_token_may_come_by_the_environment_and_is_shown_by_no_error(running, tmp_path, monkeypatch):
    monkeypatch.setenv("DECENTRAL_INVITATION", "secret")
    run("worker", "--join", "a:1", "--join", "b:2#other", "--out", str(tmp_path))
    assert running.calls[0][2] == ["a:1#secret", "b:2#other"]
    for arguments in (["status", "nowhere#secret"], ["export", "a#secret", "--out", str(tmp_path / "x")]):
        said = run(*arguments).stderr
        assert said
        assert "secret" not in said


def test_underscores_in_flags_are_hyphens(answers):
    answers(record("a"))
    assert run("status", "a:1", "--format", "json").exit_code == 0
    assert "No such option" in run("status", "a:1", "--no_such").stderr


def test_without_out_each_worker_gets_a_fresh_folder(running, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("worker", "--join", "a:1")
    run("worker", "--join", "a:1")
    folders = [worker.out for _, worker, *_ in running.calls]
    assert len(set(folders)) == 2
    assert all((tmp_path / folder).is_dir() for folder in folders)


def test_a_start_that_fails_leaves_no_folder_behind(running, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def fail(*args):
        raise UnreachableError("Nobody there.")

    running.run_worker = fail
    assert run("worker", "--join", "a:1").exit_code == ExitCode.UNREACHABLE
    assert list(tmp_path.glob("runs/*")) == []
    assert run("worker", "--join", "a:1", "--out", "mine").exit_code == ExitCode.UNREACHABLE
    assert (tmp_path / "mine").is_dir()


def test_an_out_that_cannot_be_made_is_named(running, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("worker", "--join", "a:1", "--out", str(tmp_path / "file"))
    assert result.exit_code == ExitCode.CONFIG
    assert "is a file, not a folder" in result.stderr
    result = run("worker", "--join", "a:1", "--out", str(tmp_path / "file" / "below"))
    assert result.exit_code == ExitCode.CONFIG
    assert "Cannot make the folder" in result.stderr


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([record("aaaaaa"), record("bbbbbb")], ExitCode.OK),
        ([record("aaaaaa"), record("bbbbbb", State.REPAIRING)], ExitCode.DEGRADED),
        ([], ExitCode.EMPTY),
    ],
)
def test_status_tells_health_by_its_exit_code(answers, rows, code):
    answers(*rows)
    result = run("status", "203.0.113.7:31337")
    assert result.exit_code == code
    assert "demo: diloco, int8-b128 | round" in result.stdout
    assert all(name in result.stdout for name, _ in [(row[0].peer, 0) for row in rows])


@pytest.mark.parametrize(
    ("mean", "now", "flags", "waited_s"),
    [(0.3, 2, (), 4), (30.0, 1, (), 40), (0.3, 30, (), 40), (9000.0, 1, (), 60), (30.0, 1, ("--timeout", "7"), 7)],
)
def test_status_gives_up_on_a_swarm_that_does_not_answer_and_has_patience_on_a_busy_machine(
    monkeypatch, tmp_path, mean, now, flags, waited_s
):
    (tmp_path / "loadavg").write_text(f"{mean:.2f} 0.10 0.10 {now}/300 4711\n")

    async def ask_status(addresses, timeout_s):
        assert timeout_s == pytest.approx(0.875 * waited_s)
        raise TimeoutError

    monkeypatch.setattr("decentral.run.asking.ask_status", ask_status)
    monkeypatch.setattr("decentral.cli.status._LOAD", tmp_path / "loadavg")
    monkeypatch.setattr("decentral.cli.status.os.sched_getaffinity", lambda pid: {0, 1, 2})
    result = run("status", "203.0.113.7:31337", "--format", "json", *flags)
    assert (result.exit_code, result.stdout) == (ExitCode.UNREACHABLE, "")
    assert result.stderr.startswith(f"error: No answer from 203.0.113.7:31337 within {waited_s} s.\nhint: ")


@pytest.fixture
def follows(monkeypatch):
    """Makes the swarm answer so to one question after the other; then somebody presses Ctrl-C, or sends a signal."""

    def follow_with(*answers, end=signal.SIGINT):
        async def follow(addresses, *, every_s, timeout_s):
            for answer in answers:
                yield answer
            signal.raise_signal(end)
            await asyncio.sleep(60)

        monkeypatch.setattr("decentral.run.asking.follow", follow)

    return follow_with


REPORT = summarize(RunFacts("demo", "diloco", "int8-b128", 9, 1, "0.1", "c0"), [record("aaaaaa")], ttl_s=6.0)


def test_watch_repeats_until_interrupted_and_outlives_a_swarm_that_is_away(follows):
    follows(REPORT, UnreachableError("Nobody there."), REPORT)
    result = run("status", "a:1", "--watch", "--format", "json")
    assert result.exit_code == 0
    assert [line[:20] for line in result.stdout.splitlines()] == ['{"health": "healthy"'] * 2
    assert "error: Nobody there." in result.stderr


def test_watch_ends_where_asking_again_would_not_help(follows):
    follows(REPORT, WrongPeerError("Somebody else lives there."), REPORT)
    result = run("status", "a:1", "--watch")
    assert result.exit_code == ExitCode.WRONG_PEER
    assert result.stdout.count("demo: diloco") == 1


@pytest.mark.parametrize(
    ("end", "ctrl_c"),
    [
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.default_int_handler),
        (signal.SIGHUP, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_IGN),  # as in what a script starts in the background
    ],
)
def test_watch_has_the_swarm_logged_and_closes_its_loggers(follows, monkeypatch, end, ctrl_c):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it
    before_c = signal.signal(signal.SIGINT, ctrl_c)
    logged: list[object] = []

    class Logs:
        def __init__(self, names, about, own) -> None:
            logged.append((names, about.run, about.name, str(about.folder), own))

        def take(self, report) -> None:
            logged.append(report)

        def close(self) -> None:
            logged.append("closed")

    monkeypatch.setattr("decentral.cli.status.LogTo", Logs)
    monkeypatch.setattr("decentral.metrics.loggers.check", lambda name: None)
    follows(REPORT, UnreachableError("Nobody there."), REPORT, end=end)
    assert run("status", "a:1", "--watch", "--log-to", "wandb", "--log-to", "mlflow").exit_code == 0
    assert logged == [(["wandb", "mlflow"], "demo", "swarm", "runs/demo", None), REPORT, REPORT, "closed"]
    assert signal.signal(signal.SIGHUP, before) is signal.SIG_DFL
    assert signal.signal(signal.SIGINT, before_c) is ctrl_c
    refused = run("status", "a:1", "--log-to", "wandb")
    assert (refused.exit_code, "Add --watch" in refused.stderr) == (ExitCode.USAGE, True)


def test_on_a_terminal_watch_has_the_whole_screen_and_gives_it_back(follows, monkeypatch):
    follows(REPORT)
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
    monkeypatch.setattr("decentral.cli.status.console", lambda file: terminal)
    assert run("status", "a:1", "--watch").exit_code == 0
    begin, shown, end = terminal.file.getvalue().partition("demo: diloco")
    assert "\x1b[?1049h" in begin
    assert shown
    assert "\x1b[?1049l" in end


def test_the_second_signal_exits_at_once(tmp_path):
    """In a process of its own: the first SIGINT sets the event, the second ends it with 130."""
    code = """
import os, signal, threading
from decentral.cli.signals import stopping
stop = threading.Event()
with stopping(stop.set, print):
    os.kill(os.getpid(), signal.SIGINT)
    stop.wait(60)
    print("stopping", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(60)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("stopping\n", ExitCode.INTERRUPTED)


HANGS_UP = """
import os, signal, sys, threading
from decentral.cli.signals import stopping
stop, asked = threading.Event(), []
# Whoever runs the tests may ignore it.
signal.signal(signal.SIGHUP, signal.SIG_IGN if "nohup" in sys.argv else signal.SIG_DFL)
with stopping(lambda: (asked.append(1), stop.set()), print):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGHUP)
    if "nohup" in sys.argv:
        os.kill(os.getpid(), signal.SIGTERM)
    stop.wait(60)
print("asked", len(asked))
"""


@pytest.mark.parametrize("start", ["plain", "nohup"])
def test_a_hang_up_asks_to_stop_and_is_never_the_second_signal(start):
    """Under nohup it is nothing at all: a SIGTERM after it is the first."""
    command = [sys.executable, "-c", HANGS_UP, start]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("asked 1\n", ExitCode.OK)


def test_a_notice_of_preemption_is_passed_on_each_time_and_is_no_wish_to_stop():
    code = """
import os, signal, threading
from decentral.cli.signals import stopping
stop, told = threading.Event(), threading.Semaphore(0)
with stopping(stop.set, told.release):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert told.acquire(timeout=60)
    print("asked to stop", stop.is_set())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("asked to stop False\n", ExitCode.OK)


def test_a_signal_that_somebody_else_handles_asks_for_nothing():
    """As SIGCHLD in a process in which a loader of torch has processes that read ahead."""
    code = """
import os, signal, threading
from decentral.cli.signals import stopping
told = threading.Semaphore(0)
signal.signal(signal.SIGCHLD, lambda *_: None)
with stopping(lambda: print("asked to stop", flush=True), told.release):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGCHLD)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert told.acquire(timeout=60)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("done\n", ExitCode.OK)


def test_signal_handlers_are_gone_afterwards():
    import signal

    from decentral.cli.signals import stopping

    before = signal.getsignal(signal.SIGTERM)
    with stopping(lambda: None, lambda: None):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
