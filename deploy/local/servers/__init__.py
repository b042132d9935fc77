"""PostgreSQL and RabbitMQ for one machine: found, or started as private instances beside whatever runs there."""

from deploy.local.servers.find import Servers, down, reach_given, up
from deploy.local.servers.postgres import Postgres
from deploy.local.servers.rabbitmq import RabbitMQ

__all__ = ["Postgres", "RabbitMQ", "Servers", "down", "reach_given", "up"]
