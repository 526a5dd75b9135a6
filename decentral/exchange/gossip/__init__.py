"""Mixing in small groups that change, without a leader: in rounds or at random moments."""
