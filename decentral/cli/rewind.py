"""``decentral rewind``: a run that went wrong goes on from an earlier checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from decentral.cli import flags
from decentral.errors import ExitCode, UsageError
from decentral.state.checkpoints.manifest import SET_ASIDE

_BEST = "best"
_FOLDER = typer.Argument(metavar="DIR", help="Of a worker or of a local run, all of whose workers are stopped.")
_TO = typer.Option(metavar="best|STEP", help="Go back to the best checkpoint in DIR, or to the newest up to a step.")


def rewind(folder: Annotated[Path, _FOLDER], to: Annotated[str, _TO] = _BEST, debug: flags.Debug = False) -> int:
    """Set aside the checkpoints beyond a step, so that --resume goes on from there. Nothing is deleted."""
    if to != _BEST and not (to.isascii() and to.isdigit()):
        raise UsageError(f"--to {to} is neither best nor a step.", hint="Give --to best, or a step such as --to 500.")
    from decentral.run.rewinding import rewound

    run, step, workers = rewound(folder, None if to == _BEST else int(to))
    print(f"back to step {step}")
    for worker in workers:
        left = "nothing is left" if worker.step is None else f"goes on from step {worker.step}"
        gone = f"; {', '.join(worker.gone)} now in {worker.path}/{SET_ASIDE}" if worker.gone else ""
        print(f"{worker.path}: {left}{gone}")
    print("Do the same with all other workers of the run, with the same step, before one of them goes on.")
    if run.resume:
        print(f"resume: {run.resume}")
    return ExitCode.OK
