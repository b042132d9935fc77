"""The providers: nothing outside this package knows one exists."""
