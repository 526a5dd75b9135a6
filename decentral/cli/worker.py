"""``decentral worker``: one worker of a swarm, founding it or joining it."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decentral.cli import flags, models
from decentral.cli.command import let_go_of_stdout, with_invitation
from decentral.cli.models import ModelFlags
from decentral.cli.signals import stopping
from decentral.config.pipeline import check_founder
from decentral.config.resolve import (
    ensure_named_here,
    import_task,
    may_import,
    on_machine,
    resolve,
    resolve_method,
    stated_here,
)
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.config.settings import load, value_of, with_values
from decentral.errors import ConfigError, DecentralError, UsageError
from decentral.run.preempt import watching
from decentral.run.stop import Stop

if TYPE_CHECKING:  # opens nodes, which `decentral --help` must not wait for
    from decentral.run.connection import Start

_PUBLIC = typer.Option("--public", help="Found a swarm that anybody may join; no token is in its address.")
_ALLOW = typer.Option(help="Have to do with this peer, and such others, alone. Repeatable.", metavar="PEER_ID")
_DENY = typer.Option(help="Have nothing to do with this peer. Repeatable.", metavar="PEER_ID")
_RELAY = typer.Option(help="Pass on, at these ports, what is for workers that nobody reaches.", metavar="any|PORT-PORT")
_STAGE = typer.Option(help="Hold this of a pipeline, not what needs it most; 0 is the head.", metavar="K|A-B|spare")
_PROTECT = typer.Option(help="Keep a lost machine's state elsewhere, K times.", metavar="K")
_METRICS = typer.Option(
    help="Serve metrics for Prometheus: on loopback, unless HOST is another.", metavar="[HOST:]PORT"
)
_INNER = typer.Option(help="Under torchrun: how this machine's processes train one model.", metavar="ddp|fsdp")
#: Chosen again when the method is.
_AGAIN = {f"method.{key}": "auto" for key in ("mean_codec", "feedback", "mix_alpha")}


def worker(
    more_data: flags.MoreData = None,
    new: Annotated[bool, typer.Option("--new", help="Found a swarm and print the command that joins it.")] = False,
    join: Annotated[list[str] | None, typer.Option(help="Join the swarm at this address.", metavar="ADDR")] = None,
    resume: flags.Resume = None,
    config: flags.Config = None,
    assignments: flags.Set = None,
    port: Annotated[int | None, typer.Option(help="TCP port to listen on; 0 for any free one.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    announce: Annotated[str | None, typer.Option(help="Address that others should use, if it differs.")] = None,
    relay: Annotated[str | None, _RELAY] = None,
    identity: Annotated[str | None, typer.Option(help="Key file; made if it does not exist.", metavar="FILE")] = None,
    device: flags.Device = None,
    inner: Annotated[str | None, _INNER] = None,
    task: flags.Task = None,
    trust_config: flags.TrustConfig = False,
    model: models.Model = None,
    from_scratch: models.FromScratch = False,
    tokenizer: models.Tokenizer = None,
    lora: models.Lora = None,
    dataset: models.Dataset = None,
    text_field: models.TextField = None,
    allow_download: models.AllowDownload = False,
    data: flags.Data = None,
    public: Annotated[bool, _PUBLIC] = False,
    allow: Annotated[list[str] | None, _ALLOW] = None,
    deny: Annotated[list[str] | None, _DENY] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch; 0 for its own choice.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder for weights and journal.", metavar="DIR")] = None,
    overwrite: flags.Overwrite = False,
    checkpoint_every: flags.CheckpointEvery = None,
    keep: flags.Keep = None,
    protect: Annotated[int | None, _PROTECT] = None,
    rounds: Annotated[int | None, typer.Option(help="Length of the run.")] = None,
    method: flags.Method = None,
    codec: flags.Codec = None,
    fragments: flags.Fragments = None,
    overlap: flags.Overlap = None,
    mix: flags.Mix = None,
    stages: flags.Stages = None,
    replicas: flags.Replicas = None,
    stage: Annotated[str | None, _STAGE] = None,
    max_upload: flags.MaxUpload = None,
    on_preempt: flags.OnPreempt = None,
    dashboard: flags.Dashboard = None,
    metrics: Annotated[str | None, _METRICS] = None,
    log_to: flags.LogTo = None,
    debug: flags.Debug = False,
) -> int:
    """Take part in a swarm: found one with --new, join one with --join ADDR, or go on with --resume DIR.

    The first line on stdout is the command that joins this swarm; everything else goes to stderr.
    """
    if is_follower():
        return run(None)
    check_start(new, join, resume)
    stated = {
        **_own(port=port, host=host, announce=announce, relay=relay, identity=identity, device=device, inner=inner),
        **_own(checkpoint_every=checkpoint_every, keep=keep, protect=protect, on_preempt=on_preempt, log_to=log_to),
        **_own(threads=threads, max_upload=max_upload, stage=stage, dashboard=dashboard, metrics=metrics, out=out),
        **_own(trust_config=trust_config or None, allow=allow, deny=deny, log_level="debug" if debug else None),
        # What a founder says of task and model is the run's; a joiner's stands for it on the joiner's machine.
        **ModelFlags(model, tokenizer, lora, dataset, text_field, from_scratch, allow_download, task).by_key(new),
        # So is a founder's text.
        "data.paths" if new else "worker.data": data_paths(data, more_data),
        **{"run.rounds": rounds, "run.public": public or None},
        **method_flags(method, codec, fragments, overlap, mix),
        **{"pipeline.stages": word_or_number(stages), "pipeline.replicas": replicas},
    }
    return run(_start(resume, join or (), config, assignments or (), stated, overwrite=overwrite))


def _own(**values: Any) -> dict[str, Any]:
    """What is this machine's own, by its keys."""
    return {f"worker.{name}": value for name, value in values.items()}


def _start(
    resume: Path | None,
    join: Sequence[str],
    config: Path | None,
    assignments: Sequence[str],
    flags: Mapping[str, Any],
    *,
    overwrite: bool,
) -> "Start":
    """How the worker comes into its run."""
    from decentral.run.connection import Start

    if resume is not None:
        refuse_with_resume({"--out": flags["worker.out"], "--overwrite": overwrite})
        from decentral.run.resuming import take_up

        return take_up(resume, [with_invitation(address) for address in join], settled, config, assignments, flags)
    settings = load(config, assignments, flags)
    own = stated_here(settings)
    # A joiner's statements are compared with the swarm's, whose task may be another than the default.
    swarm = None if join else with_method(settled(settings.swarm, own), settings.explicit, own)
    return Start(swarm, own, [with_invitation(address) for address in join], settings.explicit, overwrite)


def check_start(new: bool, join: Sequence[str] | None, resume: Path | None) -> None:
    """Refuse anything but exactly one of --new, --join and --resume; whoever resumes may say whom to ask.

    Raises:
        UsageError: several, none, or an empty address.
    """
    if join is not None and not all(address.strip() for address in join):
        raise UsageError("--join is empty.", hint="Is the variable set? To found a new swarm use --new.")
    if new and (join or resume):
        other, what = ("--resume", "go on with a run") if resume else ("--join", "join one")
        raise UsageError(f"--new and {other} exclude each other.", hint=f"Found a swarm with --new, or {what}.")
    if not new and not join and not resume:
        raise UsageError(
            "None of --new, --join and --resume is given.",
            hint="Found a swarm with --new, join one with the line that `decentral worker --new` printed, or go on "
            "with a run in the folder of one of its workers.",
        )


def refuse_with_resume(given: Mapping[str, Any]) -> None:
    """Refuse what has no meaning for a run that goes on in its own folder.

    Raises:
        UsageError: one of the flags is given.
    """
    for flag, value in given.items():
        if value:
            raise UsageError(
                f"--resume and {flag} exclude each other.",
                hint="A run goes on in its own folder; copy that first to keep it as it is.",
            )


def method_flags(
    method: str | None, codec: str | None, fragments: str | None, overlap: str | None, mix: str | None
) -> dict[str, Any]:
    """By their keys; each of the last three is a number or a word."""
    flags = {"method.fragments": fragments, "method.delay_steps": overlap, "method.mix_alpha": mix}
    values = {key: word_or_number(text) for key, text in flags.items()}
    return {"method.name": method, "method.codec": codec, **values}


def word_or_number(text: str | None) -> Any:
    """What a flag says; ``None`` if it was not given."""
    return None if text is None else value_of(text)


def data_paths(data: Sequence[str] | None, more: Sequence[str] | None) -> tuple[str, ...] | None:
    """What --data names; ``more`` are the arguments after it, as when the shell expands a glob.

    Raises:
        UsageError: arguments without --data, or an empty path.
    """
    if more and not data:
        raise UsageError(f"Unexpected argument {more[0]!r}.", hint="Paths to train on follow --data.")
    paths = (*(data or ()), *(more or ()))
    if not all(path.strip() for path in paths):
        raise UsageError("--data has an empty path.", hint="Is the variable set?")
    return paths or None


def is_follower() -> bool:
    """Whether this process is one of several of a torchrun, and another one is the first."""
    return _num_processes() > 1 and os.environ.get("RANK", "0") != "0"


def _num_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def run(start: "Start | None") -> int:
    """Run the worker until its run is over or a signal stops it; under torchrun one process of it.

    Args:
        start: how it comes into its run; ``None`` of a follower.
    """
    stop = Stop()
    if start is None:
        from decentral.run.torchrun import run_ranks

        with stopping(stop, stop.preempt):
            return run_ranks(None, _announce_join, stop)
    out = start.own.out
    own = start.own.model_copy(update={"out": str(make_folder(out, "worker"))})
    try:
        with stopping(stop, stop.preempt), watching(own.preempt_notice, stop.preempt):
            start = replace(start, own=own, builds_task=True)
            if _num_processes() > 1:
                from decentral.run.torchrun import run_ranks

                return run_ranks(start, _announce_join, stop)
            from decentral.run.worker import run_worker

            return run_worker(start, _announce_join, stop)
    except DecentralError:
        if not out:
            with suppress(OSError):  # a start that failed leaves no empty folder behind
                os.rmdir(own.out)
        raise


def settled(swarm: SwarmConfig, own: WorkerConfig) -> SwarmConfig:
    """The configuration of a new swarm, or of one that is brought back, with nothing left open.

    Raises:
        ConfigError: see ``resolve`` and ``stages.settled``; or this worker insists on what a founder cannot hold.
    """
    ensure_named_here(swarm, own)
    # Of a run that was joined with a task of this machine's own the settings are the founder's, and complete.
    swarm = resolve(swarm) if may_import(swarm.task.factory, own) else resolve_method(swarm)
    if own.stage:
        check_founder(own.stage, swarm.pipeline.stages)
    from decentral.run import stages

    here = on_machine(swarm, own)
    import_task(here.task.factory)
    return with_values(swarm, stages.settled(here, own))


def with_method(swarm: SwarmConfig, stated: Mapping[str, Any], own: WorkerConfig) -> SwarmConfig:
    """A new swarm's configuration with the method that fits its model, this machine and the internet.

    It is chosen once, by the founder, and then part of the run like everything else.

    Args:
        swarm: settled.
        stated: what its founder stated, by dotted key; whoever states a method, or what makes one, has chosen.
        own: this machine's.

    Raises:
        DecentralError: the task cannot be built here.
        TrainerError: it failed.
    """
    from decentral.run.sizing import choice_of_founder

    chosen = choice_of_founder(on_machine(swarm, own), stated, own, alone=_num_processes() == 1)
    if chosen is None:
        return swarm
    choice, case = chosen
    told = ", ".join(f"{key.partition('.')[2]} {value}" for key, value in choice.values.items())
    typer.echo(f"method: {told}; for {case}. `decentral plan` says why, --method NAME takes another.", err=True)
    return resolve_method(with_values(swarm, {**choice.values, **_AGAIN}))


def make_folder(given: str, name: str) -> Path:
    """The folder ``given``, or a fresh one under ``runs`` with ``name`` and the time; it exists afterwards.

    Raises:
        ConfigError: it cannot be made.
    """
    stem = given or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, tries = Path(stem), 1
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=bool(given))
        except FileExistsError as err:
            if given:
                raise ConfigError(f"--out {folder} is a file, not a folder.") from err
            tries += 1  # two workers started in the same second
            folder = Path(f"{stem}-{tries}")
        except OSError as err:
            hint = "Choose a folder you may write to with --out."
            raise ConfigError(f"Cannot make the folder {folder}: {err.strerror or err}.", hint=hint) from err
        else:
            return folder


def _announce_join(address: str) -> None:
    try:
        print(f"decentral worker --join {address}", flush=True)
    except OSError as err:  # the disk of a file is full, or a pipe's reader has gone: no reason to end
        let_go_of_stdout()
        logging.getLogger(__name__).warning("cannot print how others join (%s); `decentral invite` does", err.strerror)
