"""A run, from its first chunk to its end."""
