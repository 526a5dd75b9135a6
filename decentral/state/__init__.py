"""The state a worker shares with newcomers: immutable snapshots, their download, and files. Must not know any exchange."""
