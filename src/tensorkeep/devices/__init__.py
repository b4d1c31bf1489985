"""Objects under a name, on one place: the contract of a device, its implementations and wrappers."""
