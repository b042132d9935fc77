"""Runs one claimed task: permission -> attempts (place, call, validate) -> verdict -> one write."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from services.orchestrator import backoff
from services.orchestrator.admission import Admission, Admitted
from services.orchestrator.attempt_span import attempt_span, describe_answer
from services.orchestrator.concluding import Concluding
from services.orchestrator.limiter import ComeBack, TooCostly
from services.orchestrator.outcome import AttemptLedger, answered, cut_short
from services.orchestrator.output_contract import BadResponseFormat, broken_rule, off_loop, schema_of
from services.orchestrator.progress import Progress, Send
from services.orchestrator.prompt import Prompt
from services.orchestrator.providers.base import Answer, CallRequest, Provider, ProviderFailed
from services.orchestrator.records import AttemptStart
from services.orchestrator.routing import Deployment, Routing
from services.orchestrator.runs import Cut, Run, Runs
from services.orchestrator.starting import Question, Starting
from services.orchestrator.store import BucketStore
from services.orchestrator.task import (
    LOST_TOO_OFTEN,
    TOO_COSTLY,
    WORKERS_LOST_BEFORE_ALONE,
    WORKERS_LOST_MAX,
    Finish,
    Task,
    Verdict,
    Wait,
    failed,
)
from shared import failpoints, tracing
from shared.clock import Clock
from shared.contracts.content import WaitingOn
from shared.contracts.orchestrator import WaitRecord
from shared.errors import Transient
from shared.logs import bind, get_logger

log = get_logger(__name__)

WRITE_PAUSE_SECONDS: Final = 0.2


class AttemptFailed(Exception):
    """An attempt failed and another may follow after the pause."""

    def __init__(self, pause_seconds: float, waiting_on: WaitingOn) -> None:
        super().__init__(waiting_on)
        self.pause_seconds = pause_seconds
        self.waiting_on: WaitingOn = waiting_on


class Runner:
    """Carries a task from its claim to its verdict. The database holds the task; this only moves it on."""

    def __init__(
        self,
        admission: Admission,
        starting: Starting,
        concluding: Concluding,
        providers: Mapping[str, Provider],
        routing: Routing,
        ledger: AttemptLedger,
        buckets: BucketStore,
        runs: Runs,
        send: Send,
        clock: Clock,
        *,
        attempts_max: int,
    ) -> None:
        self._admission = admission
        self._starting = starting
        self._concluding = concluding
        self._providers = providers
        self._routing = routing
        self._ledger = ledger
        self._buckets = buckets
        self._runs = runs
        self._send = send
        self._clock = clock
        self._attempts_max = attempts_max

    def start(self, task: Task, *, prompt: Prompt | None = None, start: AttemptStart | None = None) -> None:
        """Run the task in a slot of this process; `start` is its first attempt where that is written already."""
        run = Run(task, prompt=prompt, start=start)
        self._runs.start(run, self.run(run))

    async def run(self, run: Run) -> None:
        with bind(request_id=run.request_id), tracing.within(run.task.command.traceparent):
            left_seconds = (run.task.command.deadline_at - self._clock.now()).total_seconds()
            alarm = asyncio.get_running_loop().call_later(max(0.0, left_seconds), run.cut, "deadline")
            try:
                verdict = await self._verdict_or_cut(run)
            finally:
                alarm.cancel()
            if verdict is not None:
                await self._concluding.conclude(run, verdict)
            if verdict is None or run.lost:
                await self._keep_closed(run)

    async def _keep_closed(self, run: Run) -> None:
        """The task is somebody else's now, but when to come back the provider said to everybody."""
        end = run.unwritten
        while end is not None and end.closed_until is not None and self._clock.now() < end.closed_until:
            try:
                return await self._buckets.update_bucket_closed(end.domain, end.closed_until)
            except Transient as error:
                log.warning("bucket.not_closed", domain=end.domain, error=str(error))
            await self._clock.sleep(WRITE_PAUSE_SECONDS)
        return None

    async def _verdict_or_cut(self, run: Run) -> Verdict | None:
        try:
            return await self._verdict(run)
        except Cut as cut:
            return cut_short(run, cut.reason, self._ledger)
        except Exception as error:
            # Trying again would fail again, each time with a call that costs money.
            log.error("run.failed", exc_info=error)
            return self._ledger.abandoned(run, failed("internal_error", "The request could not be carried out."))

    async def _verdict(self, run: Run) -> Verdict:
        return self._hopeless(run) or await self._unpermitted(run) or await self._attempts(run)

    def _hopeless(self, run: Run) -> Finish | None:
        task = run.task
        if task.cancel_requested:
            raise Cut("cancelled")
        if self._clock.now() >= task.command.deadline_at:
            raise Cut("deadline")
        return LOST_TOO_OFTEN if task.workers_lost >= WORKERS_LOST_MAX else None

    async def _unpermitted(self, run: Run) -> Finish | Wait | None:
        """None where the task may run; its prompt is then there."""
        if run.prompt is not None:
            return None
        if run.decision_id is not None:
            prompt = await run.interruptible(self._admission.prompt(run.task.command))
            if not isinstance(prompt, Prompt):
                return prompt
            run.prompt = prompt
            return None
        answer = await run.interruptible(self._admission.ask(run.task))
        if not isinstance(answer, Admitted):
            return answer
        run.prompt, run.decision_id = answer.prompt, answer.decision_id
        return None

    async def _attempts(self, run: Run) -> Verdict:
        if run.task.workers_lost >= WORKERS_LOST_BEFORE_ALONE:
            async with self._runs.alone(run):
                return await self._retried(run)
        return await self._retried(run)

    async def _retried(self, run: Run) -> Verdict:
        # A new object for each claim: it keeps the count of its sleeping. Cut and cancellation pass through it.
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(AttemptFailed),
            wait=_pause_asked,
            stop=_slept_enough,
            sleep=run.sleep,
            before_sleep=partial(_note_pause, run, self._clock),
            reraise=True,
        )
        try:
            return await retrying(self._attempt, run)
        except AttemptFailed as failure:
            until = self._clock.now() + timedelta(seconds=failure.pause_seconds)
            return self._wait_or_give_up(run, failure.waiting_on, until)

    async def _attempt(self, run: Run) -> Verdict:
        place = run.started or await self._place(run)
        if isinstance(place, ComeBack):
            return self._wait_or_give_up(run, "provider_rate_limit", place.due)
        if isinstance(place, TooCostly):
            return TOO_COSTLY
        try:
            with attempt_span(run, place) as step:
                answer = await self._call(run, place)
                describe_answer(step, answer)
        except ProviderFailed as failure:
            return await self._after_failure(run, failure)
        failpoints.reach("attempt.after_answer")
        self._ledger.succeeded(run, answer)
        return answered(run, answer)

    async def _place(self, run: Run) -> AttemptStart | ComeBack | TooCostly:
        """The next attempt's row, written; or why there is none now."""
        candidates = self._candidates(run)
        untried = [deployment for deployment in candidates if deployment.name not in run.tried]
        answer = await self._asked(run, untried or candidates)
        if isinstance(answer, AttemptStart):
            run.started, run.called, run.unwritten = answer, False, None
        elif untried and len(untried) < len(candidates):
            # No room for a fallback now: the next look is at all of them, after a pause.
            run.tried.update(deployment.name for deployment in untried)
            raise AttemptFailed(self._pause(run), "retry_backoff")
        return answer

    async def _asked(self, run: Run, deployments: Sequence[Deployment]) -> AttemptStart | ComeBack | TooCostly:
        assert run.prompt is not None
        question = Question(
            run.request_id,
            run.task.fence,
            run.last_attempt + 1,
            deployments,
            run.prompt.tokens,
            run.decision_id,
            queued=run.task.waited_for == "provider_rate_limit",
            last=run.unwritten,
        )
        while True:
            try:
                answer = await self._starting.start(question)
            except Transient as error:
                log.warning("attempt.not_written", error=str(error))
            else:
                if answer == "not_ours":
                    raise Cut("lost")
                return answer
            await run.sleep(WRITE_PAUSE_SECONDS)

    def _candidates(self, run: Run) -> list[Deployment]:
        return self._routing.candidates(
            run.task.command.settings.model,
            self._clock.now(),
            dead=backoff.dead_deployments(run.attempts),
            tried=run.tried,
        )

    async def _call(self, run: Run, start: AttemptStart) -> Answer:
        """One provider call and the check of its output."""
        assert run.prompt is not None
        deployment = self._routing.deployment(start.deployment)
        run.tried.add(deployment.name)
        progress = Progress(
            run.task.command, start.attempt, run.epoch, self._send, self._clock.now, asyncio.get_running_loop()
        )
        run.progress = progress
        progress.begin()
        request = CallRequest(deployment, run.prompt)
        try:
            answer = await run.interruptible(self._called(run, self._providers[start.provider], request, progress))
            await self._check(run, answer)
        except BaseException:
            progress.flush()
            raise
        progress.drop()
        return answer

    async def _called(self, run: Run, provider: Provider, request: CallRequest, progress: Progress) -> Answer:
        run.called = True
        return await provider.call(request, progress.add)

    async def _check(self, run: Run, answer: Answer) -> None:
        schema = schema_of(run.task.command.settings.response_format)
        # A part, a refusal or a call of a tool is not the answer that the format is about.
        if schema is None or answer.cut_by is not None or answer.output.finish_reason != "stop":
            return
        try:
            broken = await off_loop(broken_rule, schema, answer.output.text)
        except BadResponseFormat:
            broken = None
        if broken is not None:
            raise ProviderFailed(
                "invalid_output",
                http_status=answer.http_status,
                first_token_seconds=answer.first_token_seconds,
                usage=answer.usage,
            )

    async def _after_failure(self, run: Run, failure: ProviderFailed) -> Verdict:
        self._ledger.failed(run, failure)
        await self._rest(run.attempts[-1].deployment, failure)
        left = self._candidates(run)
        reason = backoff.give_up(run.attempts, self._attempts_max, deployment_left=bool(left))
        if reason is not None:
            return Finish("failed", error=reason)
        # Where the provider said when to come back, the bucket is closed until then: the next look finds that out.
        told_when = run.unwritten is not None and run.unwritten.closed_until is not None
        elsewhere = left[0].name not in run.tried
        raise AttemptFailed(0.0 if told_when or elsewhere else self._pause(run), backoff.waiting_on(failure.kind))

    async def _rest(self, deployment: str, failure: ProviderFailed) -> None:
        seconds = self._routing.rest_seconds(deployment, failure.kind)
        if seconds is None:
            return
        until = self._clock.now() + timedelta(seconds=seconds)
        self._routing.rest(deployment, until)
        try:
            await self._buckets.insert_cooldown(deployment, until, failure.kind)
        except Transient as error:
            # The other replicas will find out for themselves.
            log.warning("cooldown.not_written", deployment=deployment, error=str(error))

    def _pause(self, run: Run) -> float:
        return backoff.full_jitter_seconds(len(run.attempts), random.random())

    def _wait_or_give_up(self, run: Run, reason: WaitingOn, until: datetime) -> Verdict:
        """A wait that ends after the deadline is the end."""
        if until >= run.task.command.deadline_at:
            return Finish("failed", error=backoff.deadline_exceeded(run.attempts, reason))
        return Wait(reason, until)


def _pause_asked(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return error.pause_seconds if isinstance(error, AttemptFailed) else 0.0


def _note_pause(run: Run, clock: Clock, state: RetryCallState) -> None:
    """The pause that begins now, for the ledger; none where another deployment is tried at once."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, AttemptFailed) and state.upcoming_sleep > 0:
        since = clock.now()
        until = since + timedelta(seconds=state.upcoming_sleep)
        run.waits.append(WaitRecord(reason=error.waiting_on, after_attempt=run.last_attempt, since=since, until=until))


def _slept_enough(state: RetryCallState) -> bool:
    """All pauses of one claim together stay short; a longer one is spent in the database, without a slot."""
    return state.idle_for + state.upcoming_sleep > backoff.QUICK_SECONDS_MAX
