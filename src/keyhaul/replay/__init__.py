"""Quarantined records, sent again."""
