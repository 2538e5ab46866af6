"""Measuring: what a toggle changes (``minisgl.ablate``) on which work (``minisgl.Workload``); peers
in turn, and what the host's own work costs (``minisgl bench``).
"""
