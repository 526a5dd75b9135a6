"""What others' tools keep of a run: an endpoint for Prometheus and loggers of experiments. Each library is an extra.

This room is told reports and knows no network, no training and no configuration.
"""
