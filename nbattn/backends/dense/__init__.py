"""Dense attention: the reference, and torch's scaled_dot_product_attention."""
