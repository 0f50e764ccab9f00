"""Connections, and whether they live."""
