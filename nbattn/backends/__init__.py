"""Backends: the code that runs programs on tensors, one module each, loaded when first used."""
