"""What has happened, as the target has it: runs, chunks, quarantine."""
