"""paribus: reproducible ablations of small language models trained from scratch."""

__version__ = "0.1.0"
