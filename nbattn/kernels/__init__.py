"""CUDA kernels from source to launch: sources, variants, compiler, cache, launcher."""
