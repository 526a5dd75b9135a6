"""What can be configured: names, types, ranges and defaults, read from files and flags. Imports no torch."""
