"""Requests of a workload: those that a spec declares, drawn with a seed."""
