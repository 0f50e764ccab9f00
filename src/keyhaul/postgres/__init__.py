"""What PostgreSQL is: its types, its catalog, its connection strings."""
