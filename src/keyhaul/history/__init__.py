"""Runs as frames."""
