"""The shared kernel: what every service stands on. It knows no service."""
