"""From a configuration to a worker that runs: the composition root, its folder, its log."""
