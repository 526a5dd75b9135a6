"""Complete trainers built on the library, imported as ``decentral.workers``: a link in that package leads here.

A run's configuration names one by its dotted name, such as ``decentral.workers.lm:build``.
"""
