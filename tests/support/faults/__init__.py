"""Faults for the whole system: a world that can be broken, a load that goes on meanwhile, and what must hold after."""
