"""The words services say to each other: pure data, one file per owner."""
