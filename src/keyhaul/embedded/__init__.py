"""The PostgreSQL that comes as a wheel: its server, its folder, the bundled flights."""
