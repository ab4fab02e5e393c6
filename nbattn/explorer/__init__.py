"""Pages that explore a plan in a browser: data as JSON, and one HTML file that needs no network."""
