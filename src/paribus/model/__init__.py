"""The language model: layers, attention and its caches, kernels, and what they take in FLOPs and bytes."""
