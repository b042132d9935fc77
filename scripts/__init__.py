"""Documents that are generated from code: `make openapi` writes them, a test compares them."""
