"""Pure values: what is stored on devices and in the catalog, encoded and decoded, checked, and nothing done.

Nothing here reads a file, a clock or the network.
"""
