"""decentral trains one model on many poorly connected machines.

Importing this package starts no thread, touches no accelerator, configures no logging and reads no
environment variable. Open ``decentral/engine/worker.py`` first: it reads from top to bottom as the algorithm.
"""

__version__ = "0.1.0"

#: Spoken between peers, who refuse another one. Raise it when a message changes shape or meaning.
PROTOCOL = 6
