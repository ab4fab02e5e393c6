"""Integrations: nbattn where other libraries expect their own attention."""
