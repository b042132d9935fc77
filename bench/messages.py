"""Publishes, deliveries and HTTP calls: from the broker's own counters and the services' metrics."""

import re
from collections import defaultdict
from collections.abc import Mapping
from urllib.request import ProxyHandler, build_opener

from prometheus_client.parser import text_string_to_metric_families

from deploy.local.servers import RabbitMQ

SCRAPE_SECONDS = 10
_opener = build_opener(ProxyHandler({}))
_BROKER_COUNTERS: Mapping[str, str] = {
    "publishes confirmed": "messages_confirmed_total",
    "deliveries acked": "messages_acknowledged_total",
}

Counts = dict[str, float]


def broker_counts(rabbitmq: RabbitMQ) -> Counts:
    """Of the whole node, over all virtual hosts."""
    said = rabbitmq.ctl("eval", "rabbit_global_counters:overview().")

    def total(counter: str) -> float:
        return float(sum(map(int, re.findall(rf"\b{counter} => (\d+)", said))))

    counts = {name: total(counter) for name, counter in _BROKER_COUNTERS.items()}
    return counts | {
        "publishes of hints": total("messages_received_total") - counts["publishes confirmed"],
        # RabbitMQ 3.10 does not count deliveries that need no ack: what was routed and never acked is these.
        "deliveries of hints": total("messages_routed_total") - counts["deliveries acked"],
    }


def service_counts(ops_urls: Mapping[str, str]) -> Counts:
    """Names tell what, where and which: `publish session.requested confirmed`, `deliver billing.results acked`."""
    counts: Counts = defaultdict(float)
    for service, url in ops_urls.items():
        with _opener.open(f"{url}/metrics", timeout=SCRAPE_SECONDS) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        for family in families:
            for sample in family.samples:
                labels = sample.labels
                match sample.name:
                    case "parley_messages_published_total":
                        counts[f"publish {labels['type']} {labels['outcome']}"] += sample.value
                    case "parley_messages_handled_total":
                        counts[f"deliver {labels['queue']} {labels['verdict']}"] += sample.value
                    case "parley_http_request_seconds_count":
                        counts[f"http {service} {labels['method']} {labels['route']}"] += sample.value
                    case "parley_group_commit_items_total" | "parley_group_commit_flushes_total":
                        what = "items" if "items" in sample.name else "flushes"
                        counts[f"group {labels['group']} {what}"] += sample.value
    return counts


def difference(after: Counts, before: Counts) -> Counts:
    return {name: value - before.get(name, 0) for name, value in sorted(after.items()) if value != before.get(name, 0)}
