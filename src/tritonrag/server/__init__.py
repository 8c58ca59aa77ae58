"""The embedded server: the real ``tritonserver`` of the ``nvidia-pytriton`` wheel, on this machine.

For machines without Docker or a GPU. The model repository knows nothing of it: the official
container serves the same folder.
"""
