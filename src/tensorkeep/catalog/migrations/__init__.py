"""Alembic's scripts for the catalog: what older catalogs lack. Run by ``tensorkeep.catalog.migrating`` alone."""
