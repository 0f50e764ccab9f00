"""Where records come from: one folder for each kind; and how keys are cut into chunks."""
