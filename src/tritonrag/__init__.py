"""Retrieval-augmented generation as one graph inside NVIDIA Triton Inference Server."""

import os

# Else gRPC starts threads anew in each process that is forked beside its connections, and one start
# of a server in twenty aborts before its program is run. It is read when gRPC is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
