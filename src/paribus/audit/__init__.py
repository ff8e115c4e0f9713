"""Comparing two finished runs, and rebuilding one run from its record."""
