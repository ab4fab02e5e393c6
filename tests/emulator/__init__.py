"""Runs the kernels of `cuda/` on a CPU, from the same files, and finds what is wrong with them."""
