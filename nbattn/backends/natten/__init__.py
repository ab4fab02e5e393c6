"""The family of the natten package: one call on whole tensors."""
