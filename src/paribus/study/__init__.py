"""Ablations: arms and seeds, the runs they need, and the verdicts on their results."""
