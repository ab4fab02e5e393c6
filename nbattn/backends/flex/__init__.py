"""The family of FlexAttention: one call on whole tensors."""
