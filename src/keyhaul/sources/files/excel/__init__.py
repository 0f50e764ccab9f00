"""Sheets of Excel and OpenDocument workbooks, loaded once and read in parts."""
