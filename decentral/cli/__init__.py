"""The command line: configuration, commands and what they print.

Data goes to stdout, everything else to stderr. Torch and hivemind are imported inside the commands that need them,
so that help and errors come at once.
"""
