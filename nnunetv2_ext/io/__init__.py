"""Whole-or-nothing files and folders, worker processes, and tables."""
