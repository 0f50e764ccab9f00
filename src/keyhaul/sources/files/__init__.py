"""Files as a source: CSV, JSON lines, Parquet and Arrow, cut into chunks without reading them first."""
