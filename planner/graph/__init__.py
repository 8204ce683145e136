"""The operators of a layer as a graph of kernel launches."""

from planner.graph.layer_graph import Launch, as_networkx, launches

__all__ = ["Launch", "as_networkx", "launches"]
