"""Bytes to bytes: how parts are kept in other forms than their own bytes. Pure; no device, no name."""
