"""Dialects: what each kernel family can say, as limits and an executable meaning. No torch."""
