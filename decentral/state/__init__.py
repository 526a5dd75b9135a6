"""The state a worker shares with newcomers: snapshots, their download, files. Must not know any exchange."""
