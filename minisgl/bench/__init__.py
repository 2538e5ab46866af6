"""Measuring: what a toggle changes (``minisgl.ablate``) on which work (``minisgl.Workload``), what
a prefix cache misses (``misses``), peers in turn, and what the host's own work costs.
"""
