"""Mixing without rounds: workers push to a parameter server, which one of them is."""
