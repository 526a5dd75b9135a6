"""Models of transformers in real processes: a founder with weights, joiners without, a kill, and what comes of it."""

import itertools
import json
import os
import signal
import socket
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from decentral.config.settings import load
from decentral.errors import ExitCode
from decentral.run.tasks import build_trainer
from tests.process.command import P, Process, WorkerProcess, mixed_together, status_of, wait_for
from tests.process.test_ranks import TWO, Together, ranks_of
from tests.support.hf import CONTEXT, make_folder, make_tokenizer, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
FOR_EVER = 1_000_000
#: transformers takes long to be imported on a busy machine.
START_S = 180.0
#: Of messages that carry no values: presence, calls and answers.
MAX_OVERHEAD_BYTES = 6_000


def founding(model: Path, rows: Path, *more: str, codec: str = "fp32") -> tuple[str, ...]:
    settings = {
        "method.inner_steps": 4,
        "method.codec": codec,
        "run.rounds": FOR_EVER,
        "eval_every_rounds": 5,
        "timing.beat_s": 0.5,
        "timing.ttl_s": 3.0,
        "task.settings.data.prefetch": 0,
        "task.settings.batch_sequences": 4,
        "task.settings.optimizer.learning_rate": 0.003,
    }
    words = (word for key, value in settings.items() for word in ("--set", f"{key}={value}"))
    return "--new", "--model", str(model), "--data", str(rows), *more, *words


def up(worker: WorkerProcess) -> WorkerProcess:
    wait_for(lambda: worker.stdout or worker.popen.poll() is not None, "a worker's first line", START_S)
    return worker


def through_a_kill(
    start: Callable[[P], P], folder: Path, arguments: Sequence[str], joining: Sequence[str], spoil: Callable[[], None]
) -> list[WorkerProcess]:
    """Found, join, kill the joiner, join again, end in order; the founder and the one that is there at the end."""
    founder = start(WorkerProcess(folder / "0", *arguments))
    up(founder)
    spoil()
    victim = up(start(WorkerProcess(folder / "1", "--join", founder.address, *joining)))
    wait_for(lambda: mixed_together([founder, victim]), "a round of both", START_S)
    victim.popen.kill()
    later = up(start(WorkerProcess(folder / "2", "--join", founder.address, *joining)))
    wait_for(lambda: mixed_together([founder, later]), "a round with the one that came later", START_S)
    both = [founder, later]
    validated = [len(worker.events("validated")) for worker in both]
    wait_for(
        lambda: all(len(w.events("validated")) > n for w, n in zip(both, validated, strict=True)), "a loss", START_S
    )
    # Rows are read and tokenised between the steps here, which takes some of the time.
    shares = [row["data_share"] for row in status_of(founder.address)[1]["workers"] if row["state"] != "lost"]
    assert len(shares) == 2
    assert all(0.0 < share < 1.0 for share in shares), shares
    for worker in both:
        worker.signal(signal.SIGINT)
    assert [worker.code() for worker in both] == [0, 0]
    return both


def exported(folder: Path, source: Path, out: Path, *arguments: str) -> Path:
    process = Process(folder, "export", str(source), "--out", str(out), *arguments)
    assert process.code() == 0, process.stderr
    return out


@torch.no_grad()
def validation_loss(folder: Path, config: Path) -> float:
    """Of a model as transformers reads it, on the run's held-out batches."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    trainer = build_trainer((read := load(config)).swarm, read.worker, 0)
    losses = [
        (model(**batch).loss.item(), int((batch["labels"][:, 1:] != -100).sum()))
        for batch in trainer._data.validation()
    ]
    return sum(loss * tokens for loss, tokens in losses) / sum(tokens for _, tokens in losses)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_through_a_kill_to_a_folder_that_transformers_reads(
    start: Callable[[P], P], tmp_path: Path, kind: str
) -> None:
    model, rows = make_folder(tmp_path / "model", kind), write_rows(tmp_path / "rows.jsonl")
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")

    def spoil() -> None:
        """Joiners cannot read weights or architecture anywhere but in the swarm."""
        (model / "model.safetensors").unlink()
        (model / "config.json").unlink()

    joining = ("--data", str(rows), "--tokenizer", str(tmp_path / "tokenizer"))
    founder, _ = through_a_kill(start, tmp_path, founding(model, rows), joining, spoil)
    losses = [event["val_loss"] for event in founder.events("validated")]
    assert min(losses) < losses[0] - 0.5

    best = founder.folder / "checkpoints" / (founder.folder / "checkpoints" / "best").read_text().strip()
    measured = json.loads((best / "manifest.json").read_text())["val_loss"]
    config = founder.folder / "config.toml"
    out = exported(tmp_path / "export", best, tmp_path / "out", "--tokenizer", str(tmp_path / "tokenizer"))
    for folder in (best, out):  # a checkpoint is such a folder as well
        assert validation_loss(folder, config) == pytest.approx(measured, abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokens = tokenizer("the dog", return_tensors="pt")["input_ids"]
    found = AutoModelForCausalLM.from_pretrained(out).generate(tokens, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(found[0]).startswith("the dog")
    card = (out / "README.md").read_text()
    assert founder.events("started")[0]["run"] in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize("what", ["model", "dataset"])
def test_a_hub_that_cannot_be_reached_is_told_with_the_way_around_it(
    start: Callable[[P], P], tmp_path: Path, what: str
) -> None:
    """Its address is a port of this machine that nobody listens at."""
    given = {"model": str(make_folder(tmp_path / "model")), "dataset": str(write_rows(tmp_path / "rows.jsonl"))}
    given[what] = "some/thing"
    words = ("--model", given["model"], "--dataset" if what == "dataset" else "--data", given["dataset"])
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        hub = f"HF_ENDPOINT=http://127.0.0.1:{closed.getsockname()[1]}"
        entry = ("/usr/bin/env", hub, f"HF_HOME={tmp_path / 'cache'}", sys.executable, "-m", "decentral")
        worker = start(WorkerProcess(tmp_path / "worker", "--new", *words, entry=entry))
        wait_for(lambda: worker.popen.poll() is not None, "its end", START_S)
    told = worker.stderr.partition("error: ")[2]
    if what == "model":
        assert worker.code() == ExitCode.CONFIG
        assert "The hub cannot be reached, and the model some/thing is not on this machine." in told
        assert "hf download some/thing --local-dir DIR, and give --model DIR here" in told
    else:
        assert worker.code() == ExitCode.DATA
        assert "Couldn't reach 'some/thing' on the Hub" in told
        assert "give them or their folder with --data" in told


@pytest.mark.parametrize("inner", ["ddp", "fsdp"])
def test_two_ranks_beside_a_process(start: Callable[[P], P], tmp_path: Path, inner: str) -> None:
    """One of the ranks is killed, torchrun brings the worker back; no row is read twice, and the anchors are equal."""
    model, rows = make_folder(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl")
    one = up(start(WorkerProcess(tmp_path / "one", *founding(model, rows))))
    arguments = ("--join", one.address, "--data", str(rows), "--tokenizer", str(model), "--inner", inner)
    several = start(Together(tmp_path / "several", *arguments, torchrun=(*TWO, "--max-restarts", "1")))
    wait_for(lambda: mixed_together([one, several]), "a round of both", START_S)
    # A batch is dealt out: the worker of two processes brings as many tokens as that of one.
    most = [max(event["tokens"] for event in worker.events("stretch_done")) for worker in (one, several)]
    assert most == 2 * [4 * 4 * (CONTEXT - 1)]  # of inner steps, sequences and what is predicted of each
    os.kill(ranks_of(several)["1"], signal.SIGKILL)
    wait_for(lambda: len(several.stdout.splitlines()) == 2, "the worker once more", START_S)
    seen = one.events("round_mixed")[-1]["round"]
    wait_for(lambda: mixed_together([one, several], after=seen), "a round of both afterwards", START_S)
    for worker in (several, one):
        worker.signal(signal.SIGTERM)
        worker.code()
    digests: dict[int, set[str]] = {}
    for worker in (one, several):
        for event in worker.events("round_mixed"):
            digests.setdefault(event["round"], set()).add(event["digest"])
    assert all(len(each) == 1 for each in digests.values())


def test_an_adapter_alone_is_shared(start: Callable[[P], P], tmp_path: Path) -> None:
    model, rows = make_folder(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl")
    copy, other = make_folder(tmp_path / "copy"), make_folder(tmp_path / "other", seed=1)
    # Of rank 64 on two layers' q (32 to 32) and v (32 to 2 heads of 8).
    num_values = 2 * 64 * ((32 + 32) + (32 + 16))
    arguments = founding(model, rows, "--lora", "rank=64,alpha=64,target=q_proj,v_proj")
    refused = []

    def spoil() -> None:
        address = (tmp_path / "0" / "stdout.txt").read_text().split()[-1]
        refused.append(
            start(WorkerProcess(tmp_path / "3", "--join", address, "--data", str(rows), "--model", str(other)))
        )
        wait_for(lambda: refused[0].popen.poll() is not None, "the end of the one with other weights", START_S)
        assert refused[0].code() == ExitCode.MISMATCH, refused[0].stderr

    joining = ("--data", str(rows), "--model", str(copy))
    founder, later = through_a_kill(start, tmp_path, arguments, joining, spoil)
    assert "base weights" in refused[0].stderr

    together = [event for event in later.events("round_mixed") if len(event["members"]) == 2]
    pairs = [(a, b) for a, b in itertools.pairwise(together) if b["round"] == a["round"] + 1]
    sent = statistics.median(b["sent_bytes"] - a["sent_bytes"] for a, b in pairs)
    # In a round of two each sends half of its values to be reduced, and the mean of the other half back.
    assert 4 * num_values <= sent <= 4 * num_values + MAX_OVERHEAD_BYTES

    best = founder.folder / "checkpoints" / (founder.folder / "checkpoints" / "best").read_text().strip()
    measured = json.loads((best / "manifest.json").read_text())["val_loss"]
    out = exported(tmp_path / "export", best, tmp_path / "out")
    assert {path.name for path in out.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    for folder in (best, out):
        assert validation_loss(folder, founder.folder / "config.toml") == pytest.approx(measured, abs=1e-5)
    assert measured < validation_loss(model, founder.folder / "config.toml") - 0.01
