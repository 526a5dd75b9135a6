"""Outer rules: one file for each algorithm. Pure: no clock, no network, no randomness that is not an argument."""
