"""Bugs in the Triton kernels and in what launches them, and what catches each."""
