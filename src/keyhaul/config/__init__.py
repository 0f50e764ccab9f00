"""What a person asks for: job files, flags and variables, validated into one frozen `Job`."""
