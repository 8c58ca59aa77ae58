"""Retrieval-augmented generation as one graph inside NVIDIA Triton Inference Server."""
