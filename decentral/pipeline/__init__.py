"""The pipeline: a model in stages, each a swarm of its own. Must not know how a stage synchronises its replicas."""
