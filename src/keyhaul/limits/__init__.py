"""How much, how fast, how many."""
