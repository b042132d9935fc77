"""Stripe: its v1 API over objects kept in memory, and signed webhooks that arrive only as well as they are told to."""
