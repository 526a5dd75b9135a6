"""``decentral export``: one model out of a run, whether it is over or not."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from decentral.cli import flags, models
from decentral.cli.models import ModelFlags
from decentral.cli.render import console
from decentral.cli.worker import data_paths
from decentral.config.resolve import on_machine
from decentral.config.schema import SwarmConfig
from decentral.config.settings import load
from decentral.errors import ConfigError, ExitCode, UsageError
from decentral.monitor.figures import loss
from decentral.run.folder import SUFFIX

if TYPE_CHECKING:  # torch
    from decentral.state.average import Replica

_SOURCE = typer.Argument(
    metavar="SOURCE",
    help="Folder of a run or a worker, checkpoint (DIR/checkpoints/best), .safetensors file, or address of a worker. "
    "Several are combined.",
)
_TAKE = typer.Option(
    metavar="average|best|newest|ID",
    help="The mean of the replicas, the one with the lowest loss, the one of the highest round, or one by its name. "
    "Without it the average where workers gossip, else the newest.",
)
_OUT = "A file of weights; or, of a model of transformers, a folder that transformers reads."
#: What the folder's worker had, unless it is given now.
_OWN = frozenset({"device", "task", "trust_config", "data", "model", "tokenizer", "allow_download"})
_DATA = typer.Option(help="Text to measure the loss on, in place of the run's. Repeatable.", metavar="PATH")


def export(
    sources: Annotated[list[str], _SOURCE],
    out: Annotated[Path, typer.Option(help=_OUT, metavar="FILE.safetensors|DIR")],
    take: Annotated[str | None, _TAKE] = None,
    data: Annotated[list[str] | None, _DATA] = None,
    model: models.Model = None,
    tokenizer: models.Tokenizer = None,
    allow_download: models.AllowDownload = False,
    task: flags.Task = None,
    trust_config: flags.TrustConfig = False,
    device: Annotated[str | None, typer.Option(help="Where to measure the loss: cpu, mps, cuda or cuda:N.")] = None,
    no_loss: Annotated[bool, typer.Option("--no-loss", help="Do not measure losses.")] = False,
    debug: flags.Debug = False,
) -> int:
    """Write one replica of a run, or the average of all, with the loss of each."""
    if not all(text.strip() for text in sources):
        raise UsageError("A source is empty.", hint="Is the variable set?")
    stated = {
        "worker.device": device,
        "worker.trust_config": trust_config or None,
        "worker.data": data_paths(data, None),
    }
    stated |= ModelFlags(model, tokenizer, allow_download=allow_download, task=task).by_key(False)
    own = load(None, (), stated).worker
    as_folder = out.suffix != SUFFIX
    _check_target(out, as_folder=as_folder)
    if no_loss:
        _check_without_loss(take)
    from decentral.cli import result
    from decentral.cli.sources import config_at, ensure_any, paths_and_addresses
    from decentral.run import fetch
    from decentral.run.tasks import build_trainer, publisher_of
    from decentral.state.average import choose, survey

    paths, addresses = paths_and_addresses(sources)
    there = next((config for text in paths if (config := config_at(Path(text))) is not None), None)
    swarm = None if there is None else there.swarm
    replicas, broken = _replicas(paths, take, swarm)
    trainer = None
    if addresses:
        fetched = asyncio.run(fetch.fetch(addresses, own, _say))
        replicas, swarm, trainer = [*replicas, *fetched.replicas], fetched.swarm, fetched.trainer
    elif there is not None and (as_folder or not no_loss):
        own = there.worker.model_copy(update={key: value for key, value in own if value and key in _OWN})
        swarm = on_machine(there.swarm, own)
    ensure_any(replicas, sources, broken)
    if swarm is None and (as_folder or not no_loss):
        what = "knows the architecture" if as_folder else "measures the loss"
        raise ConfigError(
            f"There is no configuration beside {paths[0]}, so the task that {what} is not known.",
            hint="Copy config.toml of the run beside it"
            + (f", or write a file: --out NAME{SUFFIX}." if as_folder else ", or give --no-loss."),
        )
    publisher = None
    if as_folder and swarm is not None and (publisher := publisher_of(swarm, own)) is None:
        raise ConfigError(
            f"--out {out} is a folder, and the task of this run makes none.", hint=f"Write a file: --out NAME{SUFFIX}."
        )
    if trainer is None and swarm is not None and not no_loss:
        trainer = build_trainer(swarm, own, stream_seed=0)
    found = survey(replicas, None if no_loss or trainer is None else result.measure_with(trainer))
    chosen = choose(found, take or result.default_take(swarm))
    if publisher is not None and swarm is not None:
        result.publish(out, chosen, swarm, publisher, with_weights=True)
    else:
        result.write(out, chosen)
    console(sys.stdout).print(result.table(found, chosen))
    print(f"wrote {out}: {result.words(found, chosen)}, round {chosen.round}, loss {loss(chosen.loss)}", flush=True)
    return ExitCode.OK


def _replicas(paths: Sequence[str], take: str | None, swarm: SwarmConfig | None) -> tuple["list[Replica]", list[str]]:
    """The replicas on this machine, of which the stages of a pipeline together are one; and what cannot be used."""
    from decentral.cli import assemble, result
    from decentral.cli.sources import from_paths, parts_from_paths

    parts, others, broken_parts = parts_from_paths(paths)
    replicas, broken = from_paths(others)
    broken += broken_parts
    for text in broken:
        _say(f"left out: {text}")
    if parts:
        whole, chosen = assemble.assemble(parts, take or result.default_take(swarm))
        _say(f"put together of {assemble.told(chosen)}")
        replicas.append(whole)
    return replicas, broken


def _check_without_loss(take: str | None) -> None:
    """Refuse to choose by what is not measured.

    Raises:
        UsageError: the best is wanted.
    """
    from decentral.state.average import BEST

    if take == BEST:
        raise UsageError(
            f"--take {BEST} goes by the losses, which --no-loss leaves out.", hint="Leave one of them out."
        )


def _check_target(out: Path, *, as_folder: bool) -> None:
    """Refuse a target that cannot be written, before anything is downloaded or measured.

    Raises:
        ConfigError: its folder does not exist, or it is something else than what is to be written.
    """
    if as_folder and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(
            f"--out {out} is there already, and is no empty folder.",
            hint=f"Give another name, or write weights alone: --out {out / f'model{SUFFIX}'}.",
        )
    if out.is_dir() and not as_folder:
        raise ConfigError(f"--out {out} is a folder, not a file.", hint="Give another name.")
    if not out.parent.is_dir():
        raise ConfigError(f"The folder {out.parent} of --out does not exist.", hint=f"Make it: mkdir -p {out.parent}.")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
