"""Starts and ends the four processes."""

from bench.raw.pipeline import RawPipeline
from bench.steps.parts import HOLDER_PORT
from deploy.local.daemon import free_ports


class StepsPipeline(RawPipeline):
    name = "steps"
    processes = ("store", "holder", "worker", "front")

    def start(self, environ: dict[str, str]) -> None:
        (port,) = free_ports(1)
        super().start(environ | {HOLDER_PORT: str(port)})
