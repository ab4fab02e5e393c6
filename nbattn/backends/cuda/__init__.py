"""The project's own CUDA kernels."""
