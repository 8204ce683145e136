"""Layers of a model on named machines, so that the most tokens/s flow through them."""
