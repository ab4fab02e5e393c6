"""The Triton kernels: one source for NVIDIA, AMD and Intel GPUs."""
