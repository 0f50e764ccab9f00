"""Where rows go, what is written with them in one transaction, and what the target's errors mean."""
