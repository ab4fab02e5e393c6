"""The engine in plain torch: tiles of queries, on any device."""
