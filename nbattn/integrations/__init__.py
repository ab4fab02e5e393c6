"""Modules that make other libraries use nbattn; none is loaded before it is imported by name."""
