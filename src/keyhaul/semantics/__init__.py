"""What PostgreSQL means by a value that a frame holds as text: how it compares, and how numbers are computed."""
