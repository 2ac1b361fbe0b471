"""Differential privacy: one accounted release of a client's moments, and the ledger of releases."""
