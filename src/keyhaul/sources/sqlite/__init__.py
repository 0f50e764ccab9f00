"""SQLite as a source: a private copy of the file (one moment), key ranges, types checked value by value."""
