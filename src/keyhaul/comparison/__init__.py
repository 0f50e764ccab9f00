"""The target beside the source, or beside the ledger."""
