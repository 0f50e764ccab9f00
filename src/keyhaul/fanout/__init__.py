"""One record becomes rows of several tables."""
