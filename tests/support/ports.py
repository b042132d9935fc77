"""Free ports for servers that tests start."""

from deploy.local.daemon import free_ports


def free_port() -> int:
    """A port that nobody listens on, and that no other process of ours is given."""
    return free_ports(1)[0]
