"""Runs the kernels of `cuda/` on a CPU, from the same files, and reports their mistakes."""
