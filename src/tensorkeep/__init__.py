"""tensorkeep: a distributed store for large AI models."""
