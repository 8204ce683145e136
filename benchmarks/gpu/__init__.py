"""Scripts for a machine with a GPU. None of them runs, or is needed, without one."""
