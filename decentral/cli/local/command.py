"""``decentral local``: a whole swarm on this machine, from nothing to a trained model.

Each worker is a process of its own with its own node on loopback, exactly as on machines of their own. This process
takes no part in the swarm (see ``local_run``).
"""

import asyncio
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from decentral.cli import flags, models
from decentral.cli.local.processes import Processes, processes_for
from decentral.cli.models import ModelFlags
from decentral.cli.worker import data_paths, make_folder, method_flags, refuse_with_resume, word_or_number
from decentral.config.resolve import resolve, stated_here
from decentral.config.schema import SwarmConfig
from decentral.config.settings import Settings, load, with_values
from decentral.dashboard.place import check
from decentral.errors import UsageError
from decentral.metrics import loggers

if TYPE_CHECKING:  # imports torch, which `decentral --help` must not wait for
    from torch import Tensor

RESULT = typer.Option(
    help="What becomes of the workers' weights; the average with noloco, else the newest.",
    metavar="average|best|newest|INDEX",
)
COMPARE = typer.Option(
    "--compare", help="Then train one worker alone, and data-parallel, for as many steps, and say what the swarm kept."
)
_WORKERS = "Processes to start; 4 without a pipeline, whose stages and replicas say how many it takes."

DEFAULT_MINUTES = 2.0
#: Of a round beyond its inner steps, on loopback: of any, and of each value of the model.
_ROUND_S, _VALUE_S = 0.1, 5e-7


def local(
    more_data: flags.MoreData = None,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help=_WORKERS)] = None,
    stages: flags.Stages = None,
    replicas: flags.Replicas = None,
    spares: Annotated[int | None, typer.Option(min=0, max=64, help="More workers, for stages that are lost.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help=f"Train for about this long; {DEFAULT_MINUTES:g} if nothing else ends the run.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Train on at least this many tokens, all workers together.")
    ] = None,
    config: flags.Config = None,
    assignments: flags.Set = None,
    model: models.Model = None,
    from_scratch: models.FromScratch = False,
    tokenizer: models.Tokenizer = None,
    lora: models.Lora = None,
    dataset: models.Dataset = None,
    text_field: models.TextField = None,
    allow_download: models.AllowDownload = False,
    data: flags.Data = None,
    method: flags.Method = None,
    codec: flags.Codec = None,
    fragments: flags.Fragments = None,
    overlap: flags.Overlap = None,
    mix: flags.Mix = None,
    max_upload: flags.MaxUpload = None,
    device: flags.Device = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch in each worker.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder of the run.", metavar="DIR")] = None,
    resume: flags.Resume = None,
    overwrite: flags.Overwrite = False,
    checkpoint_every: flags.CheckpointEvery = None,
    keep: flags.Keep = None,
    result: Annotated[str | None, RESULT] = None,
    compare: Annotated[bool, COMPARE] = False,
    on_preempt: flags.OnPreempt = None,
    dashboard: flags.Dashboard = None,
    log_to: flags.LogTo = None,
    debug: flags.Debug = False,
) -> int:
    """Train with several workers on this machine; without options a small language model, in about two minutes."""
    loggers.check(log_to or ())
    stated = {
        **ModelFlags(model, tokenizer, lora, dataset, text_field, from_scratch, allow_download).by_key(resume is None),
        "data.paths": data_paths(data, more_data),
        **method_flags(method, codec, fragments, overlap, mix),
        **{"pipeline.stages": word_or_number(stages), "pipeline.replicas": replicas},
        **{"worker.device": device, "worker.threads": threads, "worker.max_upload": max_upload, "worker.out": out},
        **{"worker.checkpoint_every": checkpoint_every, "worker.keep": keep, "worker.on_preempt": on_preempt},
        **{"worker.dashboard": dashboard, "worker.log_to": log_to},
        "worker.log_level": "debug" if debug else None,
    }
    if resume is not None:
        refuse_with_resume({"--out": out, "--overwrite": overwrite, "--spares": spares, "--compare": compare})
        if minutes is not None or tokens is not None:
            hint = "--set run.rounds=N makes it longer."
            raise UsageError("A run that goes on has its length already: leave --minutes and --tokens out.", hint=hint)
        from decentral.cli.local.resume import resume as go_on

        return go_on(resume, workers, result, config, assignments or (), stated)
    settings = load(config, assignments or (), stated)
    processes = processes_for(settings.swarm.pipeline, workers, spares)
    check_length_and_result(minutes, tokens, result, processes)
    if minutes is None and tokens is None and "run.rounds" not in settings.explicit:
        minutes = DEFAULT_MINUTES
    return _train(settings, processes, Length(minutes, tokens), result, overwrite=overwrite, beside=compare)


def _train(
    settings: Settings, processes: Processes, length: "Length", take: str | None, *, overwrite: bool, beside: bool
) -> int:
    """Set up the run and let it run; nothing has been started when it is refused."""
    from decentral.run.connect import run_there
    from decentral.run.folder import clear_run, folders_of, has_run

    own = settings.worker
    if own.dashboard:
        check(own.dashboard)
    if own.stage:
        raise UsageError(
            f"worker.stage is {own.stage}, but in a local run every stage finds a worker by itself.",
            hint="Leave it out; --spares adds workers that wait.",
        )
    if own.out and not overwrite and any(has_run(path) for path in folders_of(Path(own.out))):
        raise run_there(Path(own.out), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # All workers are on this machine: what is its own holds for the run.
    here = {"data.paths": own.data, "task.factory": own.task}
    swarm = resolve(with_values(settings.swarm, {key: value for key, value in here.items() if value}))
    swarm = with_values(swarm, processes.values)
    threads = own.threads or max(1, cores // processes.size)
    of_one = {"identity": "", "announce": "", "data": swarm.data.paths, "task": swarm.task.factory}
    own = stated_here(settings).model_copy(update={"threads": threads, **of_one})
    import torch

    from decentral.cli.local import compare
    from decentral.run.sizing import measure
    from decentral.run.stages import parts_of, settled
    from decentral.run.tasks import build_trainer

    swarm = with_values(swarm, settled(swarm, own))
    if beside:
        compare.check(swarm, processes)
    torch.set_num_threads(own.threads)
    # Finds what is wrong with task and data before any process starts, and measures the result at the end.
    trainer = build_trainer(swarm, own, stream_seed=0)
    check_cut(swarm, parts_of(swarm, own, trainer.parameters()))
    pace = measure(trainer, steps=12 if length.minutes is not None else 1)
    if length.minutes is not None:
        numel = sum(value.numel() for value in trainer.parameters().values())
        step_s = processes.step_s(pace.step_s, own.threads, cores, on_cpu=own.device == "cpu")
        step_s += compare.step_s(pace.step_s, processes.size, own.threads, cores) if beside else 0.0
        swarm = with_values(swarm, {"run.rounds": rounds_for(60 * length.minutes, step_s, swarm, numel)})
    if length.tokens is not None:
        per_round = pace.tokens_per_step * swarm.method.inner_steps * processes.num_streams
        swarm = with_values(swarm, {"run.rounds": math.ceil(length.tokens / per_round)})
    folder = make_folder(own.out, swarm.run.name)
    if overwrite:
        for path in folders_of(folder):
            clear_run(path)
    from decentral.cli.local.run import LocalRun

    run = LocalRun(swarm, own, processes, folder, trainer, take)
    code = asyncio.run(run.run())
    if beside and run.done is not None:
        controls = compare.controls_of(swarm, processes.size, own.threads, cores)
        found = asyncio.run(compare.compare(controls, own, folder, trainer, run.done))
        if found is not None:
            print(compare.told(found, processes.size, swarm.run.rounds * swarm.method.inner_steps))
    return code


@dataclass(frozen=True, slots=True)
class Length:
    """What ends a run, if it is not ``run.rounds``: one of them at most."""

    minutes: float | None
    tokens: int | None


def check_length_and_result(
    minutes: float | None, tokens: int | None, result: str | None, processes: Processes
) -> None:
    """Refuse what makes no run.

    Raises:
        UsageError: two lengths, none above 0, or a result that so many workers cannot have.
    """
    if minutes is not None and tokens is not None:
        raise UsageError("--minutes and --tokens exclude each other.", hint="Give the one that should end the run.")
    if (minutes is not None and not 0 < minutes <= 100_000) or (tokens is not None and tokens < 1):
        raise UsageError("--minutes and --tokens must be above 0.")
    names = (
        ["average", "newest"]
        if processes.num_stages
        else ["average", "best", "newest", *map(str, range(processes.size))]
    )
    if result is not None and result not in names:
        hint = f"Take average, best, newest, or a worker from 0 to {processes.size - 1}."
        if processes.num_stages:
            hint = "Of a pipeline take average or newest, of each stage: no worker has the whole model."
        raise UsageError(f"--result {result} is not known.", hint=hint)


def check_cut(swarm: SwarmConfig, parts: "Iterable[Mapping[str, Tensor]]") -> None:
    """Cut the model into fragments as its workers will.

    Args:
        swarm: resolved.
        parts: what is synchronised by itself: the parameters of the model, or those of each stage.

    Raises:
        ConfigError: there are too few layers, or too many fragments come out for the overlap.
    """
    from decentral.run.options import run_options
    from decentral.tensors.layout import Layout

    for parameters in parts:
        options = run_options(swarm, "", parameters)
        Layout.of(parameters, options.plan.num_fragments, options.pattern)


def rounds_for(seconds: float, step_s: float, swarm: SwarmConfig, numel: int) -> int:
    """Rounds of a model of ``numel`` values that take about ``seconds``."""
    return max(1, round(seconds / (swarm.method.inner_steps * step_s + _ROUND_S + numel * _VALUE_S)))
