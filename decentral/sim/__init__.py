"""The simulator: the production engine, unchanged, on virtual time and a memory network with faults.

Everything here implements a port of ``decentral.ports``; nothing here is known to the rooms below. No threads, no
sockets, no clock of the machine, no randomness that is not drawn from a seed: a run is a function of its seed.
"""
