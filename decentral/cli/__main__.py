"""``python -m decentral.cli``: how ``decentral local`` starts its workers, whatever the path says."""

from decentral.cli.app import main

main()
