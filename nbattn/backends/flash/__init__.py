"""Flash kernels (torch's built-in, flash-attn 2, 3 and 4) and a dense model of their results."""
