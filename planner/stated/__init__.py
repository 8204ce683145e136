"""Deployments that stand already: stated group by group, simulated and judged as they are."""
