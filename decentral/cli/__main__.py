"""The ``decentral`` command, and ``python -m decentral.cli``, by which ``decentral local`` starts its workers."""

import sys

from decentral.errors import ExitCode


def main() -> None:
    """Entry point; what it imports takes long enough for a Ctrl-C to fall into it."""
    try:
        from decentral.cli.app import app

        app(prog_name="decentral")
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
