"""Optuna studies: which values to try next, at a fixed budget, within a memory budget."""
