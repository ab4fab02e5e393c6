"""What makes the site of `docs/`: extensions of its builder, and pages generated from the code."""
