"""``decentral codecs``: what each codec costs on the wire, what it loses, and how fast it is here."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from decentral.cli import flags
from decentral.cli.render import console
from decentral.cli.status import Format
from decentral.cli.worker import data_paths
from decentral.config.method import MethodSection
from decentral.config.resolve import resolve
from decentral.config.settings import load
from decentral.errors import ExitCode
from decentral.monitor.figures import amount

if TYPE_CHECKING:  # imports torch, which `decentral --help` must not wait for
    from decentral.cli.codec_report import CodecRow

#: Inner steps that the pseudo-gradient comes from at least. Adam moves all parameters about equally far at first, which
#: flatters every coarse codec: signs lose 45 % after three steps, 61 % after ten, 65 % in three steps of a later round.
_LEAST_STEPS = 10


def codecs(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Codecs to show; all without any.")] = None,
    config: flags.Config = None,
    assignments: flags.Set = None,
    data: Annotated[list[str] | None, typer.Option(help="Text to train on. Repeatable.", metavar="PATH")] = None,
    format: Annotated[Format, typer.Option(help="json is described in docs/configuration.md.")] = Format.TABLE,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="Leave out the timing.")] = False,
    debug: flags.Debug = False,
) -> int:
    """Show what codecs cost, lose and take, measured on the configuration's own task and on this machine."""
    settings = load(config, assignments or (), {"worker.data": data_paths(data, None)})
    from decentral.cli import codec_report
    from decentral.codecs.codec import codec_names, make_codec
    from decentral.run.tasks import build_trainer

    own, swarm = settings.worker, resolve(settings.swarm)
    method = swarm.method
    shown = names or [*codec_names(), *_chosen(method).values()]
    made = [make_codec(name) for name in dict.fromkeys(shown)]
    trainer = build_trainer(swarm, own, stream_seed=0)
    steps = max(_LEAST_STEPS, method.inner_steps)
    delta_N = codec_report.pseudo_gradient(trainer, steps)
    rows = codec_report.measure(made, delta_N, with_speed=not no_speed)
    if format is Format.JSON:
        reference = {"task": swarm.task.factory, "inner_steps": steps, "numel": delta_N.numel()}
        listed = [{**row.to_dict(), "used_by": _used_by(row.name, method)} for row in rows]
        print(json.dumps({"schema_version": 1, "reference": reference, "codecs": listed}, indent=2), flush=True)
        return ExitCode.OK
    screen = console(sys.stdout)
    source = f"{swarm.task.factory} after {steps} inner steps, {amount(delta_N.numel())} values"
    screen.print(f"errors on a pseudo-gradient of {source}" + ("" if no_speed else ", speed on one core"))
    screen.print(_table(rows, method, with_speed=not no_speed))
    return ExitCode.OK


def _table(rows: Sequence["CodecRow"], method: MethodSection, *, with_speed: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("codec", no_wrap=True)
    for name in ("bits/value", "to fp32", "error", *(("encode M/s", "decode M/s") if with_speed else ())):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("used by", no_wrap=True)
    for row in rows:
        cells = [row.name, f"{row.bits_per_value:.3f}", f"{row.compression:.1f}x", f"{row.relative_error:.1e}"]
        if row.speed is not None:
            cells += [f"{row.speed.encode / 1e6:.0f}", f"{row.speed.decode / 1e6:.0f}"]
        table.add_row(*cells, ", ".join(_used_by(row.name, method)))
    return table


def _used_by(name: str, method: MethodSection) -> list[str]:
    """The keys of the configuration whose codec this is."""
    return [key for key, value in _chosen(method).items() if value == name]


def _chosen(method: MethodSection) -> dict[str, str]:
    """The codecs of a resolved configuration by their keys; what stayed ``auto`` has no effect."""
    keys = ("codec", "mean_codec", "anchor_codec", "pull_codec")
    names = {f"method.{key}": getattr(method, key) for key in keys}
    return {key: name for key, name in names.items() if name != "auto"}
