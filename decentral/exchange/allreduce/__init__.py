"""Mixing by all-reduce: a leader names the participants, reducers average, all hold the same anchor."""
