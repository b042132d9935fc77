"""Takes a batch of commands in: each becomes a task that runs, waits, or has ended, in one commit for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from services.orchestrator.admission import Admission, Admitted
from services.orchestrator.backoff import deadline_exceeded
from services.orchestrator.claiming import Schedule
from services.orchestrator.closing import Closing
from services.orchestrator.leases import Leases
from services.orchestrator.limiter import ComeBack, Ledger, Placed, TooCostly
from services.orchestrator.progress import announcement
from services.orchestrator.records import NewTask
from services.orchestrator.routing import Deployment, Routing, places
from services.orchestrator.runner import Runner
from services.orchestrator.runs import Runs
from services.orchestrator.starting import Starting, start_of
from services.orchestrator.store import Arrival, TaskStore
from services.orchestrator.task import SUPERSEDED, TOO_COSTLY, Finish, State, Task, Wait, ending
from shared.clock import Clock
from shared.contracts.gateway import SessionRequested
from shared.contracts.orchestrator import SessionEnded, SessionProgressed
from shared.errors import Transient
from shared.ids import random_hex
from shared.logs import get_logger
from shared.messaging.owed import OwedPublishes
from shared.metrics import counter
from shared.postgres import Connection, Database

log = get_logger(__name__)

_arrived = counter("commands_arrived", "Commands to run a turn, by what became of them.", ("outcome",))


@dataclass(frozen=True, slots=True)
class _Arriving:
    """A command that is new here, and what is decided about it so far."""

    command: SessionRequested
    verdict: Admitted | Finish | Wait


class Intake:
    """The happy path of every turn goes through `take`."""

    def __init__(
        self,
        database: Database,
        tasks: TaskStore,
        admission: Admission,
        starting: Starting,
        closing: Closing,
        routing: Routing,
        runs: Runs,
        runner: Runner,
        leases: Leases,
        schedule: Schedule,
        owed: OwedPublishes,
        send: Callable[[SessionProgressed], None],
        clock: Clock,
    ) -> None:
        self._database = database
        self._tasks = tasks
        self._admission = admission
        self._starting = starting
        self._closing = closing
        self._routing = routing
        self._runs = runs
        self._runner = runner
        self._leases = leases
        self._schedule = schedule
        self._owed = owed
        self._send = send
        self._clock = clock

    async def take(self, commands: Sequence[SessionRequested]) -> list[SessionEnded]:
        """The stored endings of those that have one already: a repeat is answered by a repeat."""
        by_id = {command.request_id: command for command in commands}
        arrivals = await self._tasks.select_arrivals(list(by_id.values()))
        earlier = {request_id for arrival in arrivals.values() for request_id in arrival.earlier}
        if earlier:
            await self._closing.supersede(sorted(earlier))
        fresh = [command for request_id, command in sorted(by_id.items()) if not arrivals[request_id].known]
        inserted = await self._insert(await self._judged(fresh, arrivals)) if fresh else set()
        arrivals |= await self._look_again([command for command in fresh if command.request_id not in inserted])
        return [arrival.ending for arrival in arrivals.values() if arrival.ending]

    async def _look_again(self, commands: Sequence[SessionRequested]) -> dict[str, Arrival]:
        """Of those that could not be inserted: a cancel or another replica was first, or else our lease is over."""
        arrivals = await self._tasks.select_arrivals(commands) if commands else {}
        if not all(arrival.known for arrival in arrivals.values()):
            raise Transient("the lease ended while tasks were taken in")
        return arrivals

    async def _judged(self, commands: Sequence[SessionRequested], arrivals: Mapping[str, Arrival]) -> list[_Arriving]:
        """Billing and results are asked about those only that may still run."""
        newest: dict[str, int] = {}
        for command in commands:
            newest[command.session_id] = max(command.seq, newest.get(command.session_id, 0))
        hopeless: dict[str, Finish] = {}
        for command in commands:
            if arrivals[command.request_id].superseded or command.seq < newest[command.session_id]:
                hopeless[command.request_id] = SUPERSEDED
            elif self._clock.now() >= command.deadline_at:
                hopeless[command.request_id] = Finish("failed", error=deadline_exceeded(()))
        hopeful = [command for command in commands if command.request_id not in hopeless]
        answers = await self._admission.ask_all(hopeful) if hopeful else []
        asked = [_Arriving(command, answer) for command, answer in zip(hopeful, answers, strict=True)]
        return asked + [_Arriving(c, hopeless[c.request_id]) for c in commands if c.request_id in hopeless]

    async def _insert(self, arriving: Sequence[_Arriving]) -> set[str]:
        """The requests whose task was inserted; their runs have started, and what they owe is being paid."""
        permitted = {one.command.request_id for one in arriving if isinstance(one.verdict, Admitted)}
        with self._runs.reserving(len(permitted)) as slots:
            with_slot = set(sorted(permitted)[:slots])
            worker_id = self._leases.worker_id
            async with self._database.transaction() as connection:
                tasks, ledger = await self._placed(connection, arriving, with_slot, worker_id)
                inserted = await self._tasks.insert_tasks_if_absent(connection, tasks, ledger.changed())
                others = [task for task in tasks if task.request_id not in inserted]
                if others:
                    self._withdraw(others, ledger)
                    await self._starting.write_back(connection, ledger)
            # While we waited for locks the lease may have run out: its tasks are others' now.
            is_ours = self._leases.held and self._leases.worker_id == worker_id
            done = [task for task in tasks if task.request_id in inserted and (is_ours or task.start is None)]
            self._follow_up(done, arriving)
        return inserted

    async def _placed(
        self, connection: Connection, arriving: Sequence[_Arriving], with_slot: set[str], worker_id: str
    ) -> tuple[list[NewTask], Ledger]:
        domains = {
            deployment.quota_domain
            for one in arriving
            if one.command.request_id in with_slot
            for deployment in self._candidates(one.command)
        }
        ledger, now = await self._starting.locked(connection, domains)
        return [self._new_task(one, ledger, now, with_slot, worker_id) for one in arriving], ledger

    def _withdraw(self, others: Sequence[NewTask], ledger: Ledger) -> None:
        """Whoever inserted these has paid for their calls."""
        for task in others:
            if task.start is not None:
                ledger.withdraw(self._routing.deployment(task.start.deployment).quota_domain, task.start.tokens)

    def _candidates(self, command: SessionRequested) -> list[Deployment]:
        return self._routing.candidates(command.settings.model, self._clock.now())

    def _new_task(self, one: _Arriving, ledger: Ledger, now: datetime, with_slot: set[str], worker_id: str) -> NewTask:
        match one.verdict:
            case Finish() as finish:
                return self._finished(one.command, finish, now)
            case Wait() as wait:
                if wait.until >= one.command.deadline_at:
                    wait = Wait(wait.waiting_on, one.command.deadline_at)
                return NewTask(one.command, "backing_off", one.command.deadline_at, wait=wait)
            case Admitted() as admitted:
                if one.command.request_id in with_slot:
                    return self._started(one.command, admitted, ledger, now, worker_id)
                return _standing(one.command, admitted, Wait("capacity", now))

    def _finished(self, command: SessionRequested, finish: Finish, now: datetime) -> NewTask:
        ended = ending(Task(command), finish, now)
        return NewTask(command, "finished", command.deadline_at, ending=ended)

    def _started(
        self, command: SessionRequested, admitted: Admitted, ledger: Ledger, now: datetime, worker_id: str
    ) -> NewTask:
        placement = ledger.place(places(self._candidates(command)), admitted.prompt.tokens, queued=False)
        match placement:
            case Placed(name):
                deployment = self._routing.deployment(name)
                tokens, decision_id = admitted.prompt.tokens, admitted.decision_id
                start = start_of(command.request_id, 1, 1, deployment, tokens, decision_id, now)
                return NewTask(
                    command, "running", command.deadline_at, tokens, decision_id, worker_id=worker_id, start=start
                )
            case ComeBack(due) if due < command.deadline_at:
                return _standing(command, admitted, Wait("provider_rate_limit", due))
            case ComeBack():
                finish = Finish("failed", error=deadline_exceeded((), "provider_rate_limit"))
                return self._finished(command, finish, now)
            case TooCostly():
                return self._finished(command, TOO_COSTLY, now)

    def _follow_up(self, tasks: Sequence[NewTask], arriving: Sequence[_Arriving]) -> None:
        """After the commit: run, announce, publish."""
        verdicts = {one.command.request_id: one.verdict for one in arriving}
        for task in tasks:
            _arrived.labels(task.wait.waiting_on if task.wait else task.state).inc()
            verdict = verdicts[task.request_id]
            command = task.source
            if task.start is not None and isinstance(verdict, Admitted) and isinstance(command, SessionRequested):
                running = Task(command, tokens=task.tokens, decision_id=task.decision_id)
                self._runner.start(running, prompt=verdict.prompt, start=task.start)
            elif task.wait is not None and isinstance(command, SessionRequested):
                self._announce(command, task.wait)
        self._owed.pay([task.ending for task in tasks if task.ending])

    def _announce(self, command: SessionRequested, wait: Wait) -> None:
        if wait.waiting_on == "capacity":
            self._schedule.slot_wanted = True
        else:
            self._schedule.expect(wait.until)
        self._send(
            announcement(
                command,
                0,
                random_hex(),
                self._clock.now(),
                waiting_on=wait.waiting_on,
                waiting_until=wait.until,
            )
        )


def _standing(command: SessionRequested, admitted: Admitted, wait: Wait) -> NewTask:
    state: State = "waiting" if wait.waiting_on == "capacity" else "backing_off"
    return NewTask(command, state, command.deadline_at, admitted.prompt.tokens, admitted.decision_id, wait=wait)
