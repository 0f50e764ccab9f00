"""keyhaul: a columnar batch engine that moves tables, files and documents into PostgreSQL."""

__version__ = "0.1.0"
