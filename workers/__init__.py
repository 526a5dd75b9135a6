"""Complete trainers built on the library. A run's config names one by its dotted name, such as ``workers.lm:build``."""
