"""Sections 4 and 5 of the method: probes, and what a single node says about every label."""
