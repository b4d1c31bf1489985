"""What exists and where: the catalog's contract and its implementations."""
