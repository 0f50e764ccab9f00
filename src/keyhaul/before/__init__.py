"""All that is settled before the first row moves."""
