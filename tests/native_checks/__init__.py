"""The C++ kernels of `cpu/` alone: problems, guarded memory, sanitizers, and bugs put into them."""
