"""`python -m deploy.local.standins.llm --port P --control-port C [--seed N]`."""

from aiohttp import web

from deploy.local.standins import serving
from deploy.local.standins.llm.control import control_routes
from deploy.local.standins.llm.server import provider_app
from deploy.local.standins.llm.state import State


def main() -> None:
    parser = serving.parser("deploy.local.standins.llm")
    parser.add_argument("--seed", type=int, default=1, help="fixes the default answers")
    parser.add_argument("--first-byte-ms", type=float, default=0, help="latency of every call without a rule")
    args = parser.parse_args()

    def build() -> tuple[web.Application, web.Application]:
        state = State(args.seed, args.first_byte_ms, args.log_calls_max)
        return provider_app(state), control_routes(state)

    serving.run(build, args)


if __name__ == "__main__":
    main()
