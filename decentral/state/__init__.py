"""What a worker has, and how it outlives it: snapshots, its whole state, downloads, checkpoints. Knows no exchange."""
