"""Every fix of an error message, pasted and run: one table for each part of the package."""
