"""Studies: which values to try next (tune), under a memory budget."""
