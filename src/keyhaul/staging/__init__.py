"""Accepted, rejected, duplicate: rules and dedup in DuckDB."""
