"""A checkpoint for other tools: a folder that transformers loads, or a GGUF file for llama.cpp and its kin."""
