"""The command line: reads arguments and environment, calls the store's promises, prints tables or JSON."""
