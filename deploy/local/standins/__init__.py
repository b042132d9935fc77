"""Stand-ins for the two outside parties: an LLM provider and Stripe, each a process of its own that tests can script.

`python -m deploy.local.standins.llm` and `python -m deploy.local.standins.stripe` print one line,
`ready port=... control_port=...`, when they listen. They import nothing of the product, so that a mistake
there cannot be repeated here. The control routes are in README.md.
"""
