"""Billing's internal HTTP API: URL, parse, use case, response."""
