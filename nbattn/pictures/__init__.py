"""Pictures of masks and plans: text, matplotlib figures, and what notebooks show."""
