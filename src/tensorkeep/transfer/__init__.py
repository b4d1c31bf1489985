"""Moves bytes: reads them from devices into memory, verified, and hashes what goes out. Plans go in, results come out."""
