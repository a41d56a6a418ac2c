"""Clips on disk: reading, writing, folders, batches."""
