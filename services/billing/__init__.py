"""Billing: the money. Facts from Stripe, decisions about accounts, holds on their tokens, the ledger.

owns       Stripe events, customers, subscriptions, overlays, plans, decisions, credit accounts, holds, ledger
receives   result.completed, result.incomplete, result.failed, result.refused, result.cancelled
publishes  eligibility.changed
serves     /webhooks/stripe and /webhooks/stripe/thin to Stripe; eligibility, holds, usage, charges, records,
           checkout and portal to the other services under /internal
"""
