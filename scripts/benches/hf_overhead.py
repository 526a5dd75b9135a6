"""What the worker costs of a model of transformers: its steps in a swarm against a bare loop on the same batches.

One process has a swarm of one worker, founded as a training loop does it, and a second model with the same weights in
a plain loop of transformers: forward with labels, backward, clipping, the same AdamW, the loss as a number. They take
turns step by step, so that whatever else slows the machine slows both. A round of each gives a ratio of time, and one
of the process's processor time, which other work on the machine hardly touches. In the worker's part are its data
(tokenised by a process beside it), the outer step, and what the network's thread does; a worker alone sends nothing.

    scripts/bench hf-overhead --pairs 12

writes docs/benchmarks/hf-overhead.json and, from it, docs/benchmarks/hf-overhead.md. Exit code as of
scripts/bench overhead.
"""

import json
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LlamaConfig

import decentral
from decentral.config.resolve import resolve_task
from decentral.config.schema import WorkerConfig
from decentral.config.settings import load
from decentral.run.tasks import build_trainer
from decentral.workers.hf.model import build_model, config_from
from decentral.workers.hf.settings import read_settings
from decentral.workers.hf.trainer import HfTrainer
from decentral.workers.optimizer import OptimizerConfig, make_optimizers
from scripts.benches.lib.command import Parser, enter
from scripts.benches.lib.report import Record, load_average, signature, stamp, write
from scripts.benches.lib.stats import between
from scripts.benches.lib.tables import table
from scripts.benches.overhead import REQUIRED, exit_code, in_words, judged
from tests.support.hf import make_tokenizer

SCRIPT = "hf-overhead"
VOCAB, CONTEXT = 1024, 128
ROWS_BYTES = 2_000_000


def make_model(folder: Path) -> tuple[Path, Path]:
    """A small Llama's configuration with its tokenizer, and rows: these from the sources of Python's own library."""
    texts, size = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        texts.append(path.read_text(encoding="utf-8", errors="replace"))
        size += len(texts[-1])
        if size > ROWS_BYTES:
            break
    make_tokenizer(texts[:20], VOCAB).save_pretrained(folder)
    LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    ).save_pretrained(folder)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder, rows


class Recorded:
    """The data of a trainer, which keeps its last batch."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self.last: Mapping[str, Tensor] = {}

    def __next__(self) -> Mapping[str, Tensor]:
        """The next batch."""
        self.last = next(self._data)
        return self.last

    def __getattr__(self, name: str) -> Any:
        """All else is the data's."""
        return getattr(self._data, name)


class BareLoop:
    """A plain loop of transformers.

    Args:
        model: on the CPU.
        config: of its optimizer.
        total_steps: of the learning-rate schedule.
    """

    def __init__(self, model: Any, config: OptimizerConfig, total_steps: int) -> None:
        self._model = model.train()
        self._config, self._total_steps = config, total_steps
        (self._optimizer,) = make_optimizers(dict(model.named_parameters()), config)
        self._step = 0
        self.loss = 0.0

    def train(self, batch: Mapping[str, Tensor]) -> None:
        """A step on a batch."""
        loss = self._model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._config.clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.learning_rate_at(self._step, self._total_steps)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._step += 1
        self.loss = loss.item()


class Took:
    """Time and processor time of this process, by what it did."""

    def __init__(self) -> None:
        self.seconds = {"worker": 0.0, "bare": 0.0}
        self.cpu_s = dict(self.seconds)

    @contextmanager
    def measured(self, what: str) -> Iterator[None]:
        """Add what the block takes."""
        began, spent = time.perf_counter(), time.process_time()
        yield
        self.seconds[what] += time.perf_counter() - began
        self.cpu_s[what] += time.process_time() - spent


def measure(folder: Path, pairs: int, inner_steps: int, settings: list[str]) -> tuple[list[Record], Record]:
    """All pairs, the first of which warms up and is left out; and what is common to them."""
    torch.set_num_threads(1)
    model, rows = make_model(folder)
    stated = [
        f"task.settings.model.name={json.dumps(str(model))}",
        "task.settings.model.from_scratch=true",
        "task.factory=decentral.workers.hf:build",
        f"data.paths=[{json.dumps(str(rows))}]",
        f"method.inner_steps={inner_steps}",
        f"run.rounds={pairs + 2}",
        *settings,
    ]
    config = resolve_task(load(assignments=stated).swarm)
    trainer = build_trainer(config, WorkerConfig(model=str(model)), 1)
    assert isinstance(trainer, HfTrainer)
    read = read_settings(config.task.settings)
    bare = BareLoop(
        build_model(config_from(read.model.config), config.run.seed), read.optimizer, (pairs + 2) * inner_steps
    )
    data = Recorded(trainer._data)
    trainer._data = cast(Any, data)
    records = []
    run = {"method.inner_steps": inner_steps, "eval_every_rounds": 1_000_000, "worker.host": "127.0.0.1"}
    with decentral.found(trainer.parameters(), method="diloco", rounds=pairs + 2, settings=run) as swarm:
        for number in range(pairs + 1):
            took, waited_s, tokens = Took(), data.waited_s, 0
            for _ in range(inner_steps):
                with took.measured("worker"):
                    report = trainer.train_steps(swarm.global_step, 1)
                    swarm.step(loss=report.loss, tokens=report.tokens, grad_norm=report.grad_norm)
                tokens += report.tokens
                with took.measured("bare"):
                    bare.train(data.last)
            worker_s, bare_s = took.seconds["worker"], took.seconds["bare"]
            record = {
                "worker_tokens_per_s": round(tokens / worker_s, 1),
                "bare_tokens_per_s": round(tokens / bare_s, 1),
                "ratio": round(bare_s / worker_s, 4),
                "cpu_ratio": round(took.cpu_s["bare"] / took.cpu_s["worker"], 4),
                "data_share": round((data.waited_s - waited_s) / worker_s, 5),
                "load_average": load_average(),
            }
            print(json.dumps(record), flush=True)
            records += [record] * (number > 0)
    trainer._data.close()
    numel = sum(value.numel() for value in trainer.parameters().values())
    return records, {"numel": numel, "batch_sequences": read.batch_sequences, "seq_len": read.seq_len}


def summed_up(records: list[Record], about: Record, inner_steps: int) -> Record:
    """The report."""
    found = {name: judged(name, records) for name in ("ratio", "cpu_ratio")}
    waited = statistics.median(record["data_share"] for record in records)
    return {**found, "data_share": waited, "inner_steps": inner_steps, **about, "pairs": records, **stamp(SCRIPT)}


def page(report: Record) -> str:
    """The report for people."""
    speeds = ("worker_tokens_per_s", "bare_tokens_per_s")
    rows = [
        [
            *(f"{pair[key]:,.0f}" for key in speeds),
            *(f"{pair[key]:.3f}" for key in ("ratio", "cpu_ratio")),
            f"{100 * pair['data_share']:.2f} %",
        ]
        for pair in report["pairs"]
    ]
    loads = [pair["load_average"] for pair in report["pairs"]]
    shape = (
        f"{report['numel'] / 1e6:.1f} million parameters, {report['batch_sequences']} sequences of {report['seq_len']}"
    )
    columns = "worker (tokens/s): | bare loop (tokens/s): | ratio: | of processor time: | worker's wait for data:"
    return f"""# What the worker costs of a model of transformers

Written by `scripts/bench hf-overhead`; the raw record is `hf-overhead.json`. Tokens per second of a worker alone
(`decentral.workers.hf` in a DiLoCo swarm of one) against a bare loop of transformers on the same batches: a Llama of
{shape} tokens, fp32, one thread. Both are in one process and take turns
step by step; a row is a round of {report["inner_steps"]} steps of each. Two cores,
load average {between(loads, ".0f")}: with more than two, other work takes part of the time, and the ratio of processor
time says more. Required is a ratio of at least {REQUIRED}.

{table(columns, rows)}

Ratio of time: {in_words(report["ratio"])}. Of processor time: {in_words(report["cpu_ratio"])}. Waiting for data: median
{100 * report["data_share"]:.2f} % of the worker's time.

{signature(report)}"""


def main() -> int:
    """Measure all pairs."""
    parser = Parser(SCRIPT, __doc__, "hf-overhead")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--inner-steps", type=int, default=30)
    parser.settings("as of decentral worker")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="decentral-hf-overhead-") as folder:
        records, about = measure(Path(folder), options.pairs, options.inner_steps, options.set)
    report = summed_up(records, about, options.inner_steps)
    write(options.out, report, page(report))
    return exit_code(report["ratio"])


if __name__ == "__main__":
    enter(main)
