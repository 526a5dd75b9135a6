"""Flags that several commands have, each with its type: ``config: flags.Config = None``."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from decentral.config.names import METHODS
from decentral.metrics.loggers import OPEN

_Text = str | None
_Texts = list[str] | None
_Number = int | None

Config = Annotated[Path | None, Option(help="TOML file; see docs/configuration.md.", metavar="FILE")]
Set = Annotated[_Texts, Option("--set", help="One setting, such as run.rounds=100. Repeatable.", metavar="KEY=VALUE")]
Data = Annotated[_Texts, Option(help="Text to train on: files, folders or globs of this machine.", metavar="PATH...")]
MoreData = Annotated[_Texts, Argument(hidden=True, metavar="PATH")]
Codec = Annotated[_Text, Option(help="How values travel; `decentral codecs` lists them.", metavar="NAME")]
Method = Annotated[_Text, Option(help=f"How workers come to agree: {', '.join(METHODS)}.", metavar="NAME")]
Fragments = Annotated[_Text, Option(help="Parts of the model with a sync each.", metavar="P|auto|paper")]
Overlap = Annotated[_Text, Option(help="Inner steps to hide a sync under.", metavar="TAU|auto")]
Mix = Annotated[_Text, Option(help="Share of local work kept when a sync arrives.", metavar="ALPHA|auto")]
Stages = Annotated[_Text, Option(help="Cut the model into this many stages, beside the head.", metavar="S|auto")]
Replicas = Annotated[_Number, Option(help="Holders of each stage and of the head; more wait as spares.", metavar="R")]
Task = Annotated[
    _Text, Option(help="Train with this task, not with the one that the swarm names.", metavar="MODULE:FUNCTION")
]
TrustConfig = Annotated[bool, Option("--trust-config", help="Import the task that the swarm names, whatever it is.")]
MaxUpload = Annotated[_Text, Option(help="Most that a worker sends, such as 20mbit or 2.5MB a second.", metavar="RATE")]
Resume = Annotated[Path | None, Option(help="Go on with the run in this folder, wherever its swarm is.", metavar="DIR")]
Overwrite = Annotated[
    bool, Option("--overwrite", help="Replace the weights and checkpoints of another run in that folder.")
]
CheckpointEvery = Annotated[
    _Text, Option(help="How often to write a checkpoint; 0 for only at the end.", metavar="10min|500steps")
]
Keep = Annotated[_Number, Option(help="Newest checkpoints to keep, beside the best one.", metavar="K")]
OnPreempt = Annotated[_Text, Option(help="When the machine may be taken away (SIGUSR1).", metavar="save|leave")]
Dashboard = Annotated[
    _Text, Option(help="Serve a page of the swarm: on loopback, or with a token on HOST.", metavar="[[HOST:]PORT]")
]
LogTo = Annotated[_Texts, Option(help=f"Log figures to {', '.join(OPEN)}. Repeatable.", metavar="NAME")]
Debug = Annotated[bool, Option("--debug", help="Show tracebacks and debug messages.")]
Device = Annotated[_Text, Option(help="cpu, mps, cuda or cuda:N.")]
Addresses = Annotated[list[str], Argument(metavar="ADDR", help="Of any worker of the swarm.")]
