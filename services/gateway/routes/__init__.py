"""The public API: one file per noun, one table of all routes."""
