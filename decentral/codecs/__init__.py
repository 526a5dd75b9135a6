"""Flat float32 vectors to bytes and back: what a worker's values cost on the wire. Pure; knows no peer and no round."""
