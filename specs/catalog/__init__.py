"""The catalogue: devices, nodes, engines and fitted profiles as documents, each figure with its source."""

from specs.catalog.facts import (
    NodeFacts,
    device_names,
    engine_names,
    load_device,
    load_engine,
    load_node,
    load_node_of,
    load_power,
    load_profile,
    node_names,
)

__all__ = [
    "NodeFacts",
    "device_names",
    "engine_names",
    "load_device",
    "load_engine",
    "load_node",
    "load_node_of",
    "load_power",
    "load_profile",
    "node_names",
]
