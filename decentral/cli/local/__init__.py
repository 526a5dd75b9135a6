"""``decentral local``: a whole swarm on this machine, a process for each worker."""
