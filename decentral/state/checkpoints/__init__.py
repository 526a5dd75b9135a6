"""A worker's states on disk: one checkpoint, what it says of itself, and the folder with the newest and the best."""
