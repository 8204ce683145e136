"""The master programme: which columns, how many replicas, how many nodes; solved, proven, checked, explained."""
