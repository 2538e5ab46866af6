"""Measuring: against peers in turn, and what the host's own work costs. `minisgl bench`."""
