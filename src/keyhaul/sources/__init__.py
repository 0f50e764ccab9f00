"""Where records come from: one folder for each kind."""
