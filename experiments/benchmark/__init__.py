"""Every benchmark: `python -m experiments.benchmark --workdir DIR`; a file for each section."""
