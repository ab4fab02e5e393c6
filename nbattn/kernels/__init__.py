"""Kernels from source to launch: sources, compilers, the cache, CUDA's variants and launcher."""
