"""The ``decentral`` command. Each subcommand has a file of its own and imports what is heavy only when it runs."""

import typer

import decentral
from decentral.cli.access import ban, invite, revoke
from decentral.cli.audit import audit
from decentral.cli.codecs import codecs
from decentral.cli.command import Command
from decentral.cli.dashboard import dashboard
from decentral.cli.doctor import doctor
from decentral.cli.export import export
from decentral.cli.local.command import local
from decentral.cli.plan import plan
from decentral.cli.rewind import rewind
from decentral.cli.runs import runs
from decentral.cli.simulate import simulate
from decentral.cli.status import status
from decentral.cli.version import commit
from decentral.cli.worker import worker

app = typer.Typer(
    help="Train one model on many poorly connected machines.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    # --log_level is --log-level.
    context_settings={"token_normalize_func": lambda token: token.replace("_", "-")},
)
app.command(cls=Command)(local)
app.command(cls=Command)(worker)
app.command(cls=Command)(status)
app.command(cls=Command)(doctor)
app.command(cls=Command)(dashboard)
app.command(cls=Command)(invite)
app.command(cls=Command)(revoke)
app.command(cls=Command)(ban)
app.command(cls=Command)(export)
app.command(cls=Command)(runs)
app.command(cls=Command)(rewind)
app.command(cls=Command)(audit)
app.command(cls=Command)(codecs)
app.command(cls=Command)(plan)
app.command(cls=Command)(simulate)


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print release, commit and protocol, and exit."),
) -> None:
    if version:
        built_from = f" ({known})" if (known := commit()) else ""
        typer.echo(f"decentral {decentral.__version__}{built_from}, protocol {decentral.PROTOCOL}")
        raise typer.Exit
