"""Training: objectives, optimisers, steps, the loop around them, and saved states."""
