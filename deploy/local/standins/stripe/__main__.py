"""`python -m deploy.local.standins.stripe --port P --control-port C --webhook-secret S [--webhook-url URL]`."""

from aiohttp import web

from deploy.local.standins import serving
from deploy.local.standins.stripe.api import stripe_app
from deploy.local.standins.stripe.control import control_routes
from deploy.local.standins.stripe.state import State
from deploy.local.standins.stripe.treatment import Settings


def main() -> None:
    parser = serving.parser("deploy.local.standins.stripe")
    parser.add_argument("--webhook-url", help="where events are posted; without it none are sent")
    parser.add_argument("--webhook-secret", default="whsec_standin", help="signs the deliveries")
    args = parser.parse_args()

    def build() -> tuple[web.Application, web.Application]:
        settings = Settings(url=args.webhook_url, secret=args.webhook_secret)
        state = State(settings, args.log_calls_max)
        return stripe_app(state), control_routes(state)

    serving.run(build, args)


if __name__ == "__main__":
    main()
