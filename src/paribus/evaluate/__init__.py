"""Evaluation: bits per byte, CORE, word problems, reward sparsity; each figure with its error bar."""
