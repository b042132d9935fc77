"""One request for each key, one ending for each request, the same everywhere, in time."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.faults.evidence import Evidence, output_text
from tests.support.faults.load import Post
from tests.support.faults.report import Violation
from tests.support.parley import TERMINAL

LATE_SLACK_SECONDS = 2.0
"""Between the gateway's clock tick that finds a request overdue and the row in results."""


def each_post_is_one_request(evidence: Evidence) -> Iterator[Violation]:
    for post in evidence.posts:
        if len(post.request_ids) > 1:
            yield Violation("doubled", post.marker, f"one key made {sorted(post.request_ids)}")
        if post.request_ids and post.refusals and not _payment_was_refused(evidence, post):
            yield Violation("unexpected", post.marker, f"accepted and refused under one key: {post.refusals}")
        if not post.request_ids and not post.refusals:
            yield Violation("unexpected", post.marker, "its client never learned whether it was accepted")
        for status, code in post.refusals:
            if status != 402:
                yield Violation("unexpected", post.marker, f"refused with {status} {code}")


def _payment_was_refused(evidence: Evidence, post: Post) -> bool:
    """Of two copies sent at once one may be refused at the door, while billing was not to be reached for the other: the
    hold then refuses that, unless its user or its deadline ends it before. No provider is called in any case."""
    called = evidence.by_request("attempts").keys()
    return not post.request_ids & called and all(status == 402 for status, _ in post.refusals)


def each_request_was_asked_for(evidence: Evidence) -> Iterator[Violation]:
    known = {request_id for post in evidence.posts for request_id in post.request_ids}
    for row in evidence.rows["requests"]:
        if row["id"] not in known:
            yield Violation("unexpected", row["id"], "no client knows of this request")


def each_accepted_request_has_ended(evidence: Evidence) -> Iterator[Violation]:
    requests, results = evidence.by_request("requests", "id"), evidence.by_request("results")
    for post in evidence.posts:
        for request_id in post.request_ids:
            if request_id not in requests:
                yield Violation("lost", request_id, "accepted, and not in the gateway's database")
            elif requests[request_id][0]["state"] not in TERMINAL:
                yield Violation("lost", request_id, f"still {requests[request_id][0]['state']} in the gateway")
            if request_id not in results:
                yield Violation("lost", request_id, "results has no ending")


def the_gateway_says_what_results_says(evidence: Evidence) -> Iterator[Violation]:
    results = evidence.by_request("results")
    for row in evidence.rows["requests"]:
        for ending in results.get(row["id"], ()):
            if row["state"] in TERMINAL and row["state"] != ending["status"]:
                yield Violation("doubled", row["id"], f"{row['state']} in the gateway, {ending['status']} in results")
            elif row["state"] in TERMINAL and row["result"] != ending["message"]:
                yield Violation("doubled", row["id"], "the gateway keeps another body than results")


def each_result_belongs_to_a_request(evidence: Evidence) -> Iterator[Violation]:
    known = evidence.by_request("requests", "id")
    for row in evidence.rows["results"]:
        if row["request_id"] not in known:
            yield Violation("unexpected", row["request_id"], "a result of no request")


def each_answer_is_to_its_own_question(evidence: Evidence) -> Iterator[Violation]:
    """The provider echoes what it was asked, so a mixed-up answer shows."""
    text_of = {request_id: post.text for post in evidence.posts for request_id in post.request_ids}
    for row in evidence.rows["results"]:
        output = row["message"]["output"]
        asked = text_of.get(row["request_id"])
        if row["status"] == "completed" and asked is not None and (output is None or asked not in output_text(output)):
            yield Violation("unexpected", row["request_id"], f"completed with {output} to {asked!r}")


def each_request_ended_in_time(evidence: Evidence) -> Iterator[Violation]:
    """The clock stands still while results, its database or the broker are away."""
    stored = {row["request_id"]: row["stored_at"] for row in evidence.rows["results"]}
    for row in evidence.rows["requests"]:
        if row["id"] not in stored:
            continue
        since, until = row["accepted_at"].timestamp(), stored[row["id"]].timestamp()
        allowed = row["deadline_at"].timestamp() + evidence.grace_seconds + LATE_SLACK_SECONDS
        over_seconds = until - allowed - evidence.outage_seconds(since, until)
        if over_seconds > 0:
            yield Violation("late", row["id"], f"ended {over_seconds:.1f} s after its deadline and the grace")


CHECKS = (
    each_post_is_one_request,
    each_request_was_asked_for,
    each_accepted_request_has_ended,
    the_gateway_says_what_results_says,
    each_result_belongs_to_a_request,
    each_answer_is_to_its_own_question,
    each_request_ended_in_time,
)
