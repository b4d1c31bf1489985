"""Every decision, no I/O: where to cut, where to place, what to read from where. Pure functions over plain values."""
