"""Migrations, one module each, never changed once released."""
