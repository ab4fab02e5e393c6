"""The project's Triton kernels: any mask in one call, on every GPU that torch's Triton supports."""
