"""The network between nodes: paths, the bytes that a plan sends over them, and placements that fit."""
