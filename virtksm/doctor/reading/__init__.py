"""Readers of what the checks ask for, one a source. They write nothing."""
