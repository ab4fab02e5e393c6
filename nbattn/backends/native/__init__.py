"""The project's C++ kernels for CPUs: any mask, forward and backward, in tiles of 16 rows."""
