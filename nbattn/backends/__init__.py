"""Kernel families, one folder each, listed in `families`, and the tensor code that they share."""
