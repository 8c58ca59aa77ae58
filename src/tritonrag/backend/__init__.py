"""The edge to Triton's Python backend: the only package that imports its utilities."""
