"""Frameworks: each module imports its own, lazily and alone, and is found through an entry point."""
