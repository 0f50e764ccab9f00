"""PostgreSQL as a source: one exported snapshot, key ranges, two readers."""
