"""A plan as its document stands, simulated: its traffic or another, its policies or others."""
