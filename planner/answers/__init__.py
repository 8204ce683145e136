"""Answers beside the plan: what if, other plans, the price of latency, and why there is no plan."""
