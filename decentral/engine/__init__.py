"""The worker: what happens when, in which order. Open ``worker.py`` first."""
