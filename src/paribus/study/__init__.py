"""Ablations: arms and seeds, the runs they ask for, and what those say."""
