"""Flat float32 vectors to bytes and back, and what becomes of what gets lost there. Knows no peer and no message."""
