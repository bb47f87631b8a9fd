"""One resident actor: its task, its mailbox, its state's life cycle.

    LOADING --> READY --> (PASSIVE)
       ^         | |
       |         | +-- Job -------> BUSY ---+
       |         +---- crash, refusal ----> AWAITING_WRITES
       +------------------------------------+   nothing waits --> (PASSIVE)
    more crashes than the intensity allows --> QUARANTINED --> AWAITING_WRITES

Only a READY cell takes turns. A message that finds it so, with nothing waiting
before it, has its turn at once, in the task that delivers it: waking a task
costs ten times what the turn does. Any other message waits in the mailbox or,
when a part of the state it needs is being fetched, parked behind that part.
The cell's own task does what has to wait: loading, jobs, restarts, and the
messages that have piled up meanwhile.

Messages that need the same part of the state keep their order, across restarts
too; those that need different parts have none among themselves.

Invariants:
- A turn is synchronous, so no two turns of an actor interleave.
- State is loaded only while none of the actor's writes is queued or in flight.
- A job begins only on such state; until then it is a message that waits.
- While a READY cell has messages in its mailbox, its task is awake.
- An actor is passivated only with nothing waiting, parked or uncommitted, in
  the same step that unroutes it, so a later message starts from the store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from enum import Enum, auto
from typing import Final

import trio

from dbos_actors.clock import Clock
from dbos_actors.errors import OverloadedError, RefusedError, UnavailableError
from dbos_actors.loggers import get_logger
from dbos_actors.runtime.call import Call, Waiter
from dbos_actors.runtime.limits import ActorLimits
from dbos_actors.runtime.mailbox_budget import MailboxBudget
from dbos_actors.runtime.turn import AGAIN, Behaviour, CommitLog, Job, Refusal, Turn
from dbos_actors.sleeper import Sleeper

logger = get_logger(__name__)


_TURNS_AT_ONCE = 100
"""Waiting messages that have their turns before other tasks run: 2 ms at 20 us a turn."""


class State(Enum):
    """Where a cell is in its life."""

    LOADING = auto()
    READY = auto()
    BUSY = auto()
    AWAITING_WRITES = auto()
    QUARANTINED = auto()
    PASSIVE = auto()


# Looking a member of an enumeration up costs as much as a small function: not on the way of
# every call.
_READY: Final = State.READY


class ActorCell(Sleeper):
    """An actor while it is resident. Made by its supervisor, which runs `run` in a task."""

    __slots__ = (
        "_behaviour",
        "_clock",
        "_crashes",
        "_generation",
        "_job",
        "_limits",
        "_log",
        "_mailbox_budget",
        "_make",
        "_parked",
        "_parked_messages",
        "_state",
        "_turning",
        "_unroute",
        "active",
        "ahead",
        "idle_since_s",
        "key",
        "mailbox",
        "uncommitted",
    )

    def __init__(
        self,
        key: str,
        *,
        make: Callable[[str, ActorCell], Behaviour],
        log: CommitLog,
        clock: Clock,
        limits: ActorLimits,
        mailbox_budget: MailboxBudget,
        unroute: Callable[[ActorCell], None],
    ) -> None:
        super().__init__()
        self.key = key
        # A list: an empty deque is 700 bytes, and pop(0) of a thousand takes 0.2 us.
        self.mailbox: list[Call] = []
        self.uncommitted = 0
        """Turns submitted, and neither committed nor refused yet."""
        self.ahead = 0
        """Those of them that changed the state, which is ahead of the store by these."""
        self.active = True
        """Had a message since the supervisor last looked (the second chance of its clock)."""
        self.idle_since_s = 0.0
        """When the supervisor last found it active."""
        self._make = make
        self._behaviour = make(key, self)
        self._log = log
        self._clock = clock
        self._limits = limits
        self._mailbox_budget = mailbox_budget
        self._unroute = unroute
        self._state = State.LOADING
        self._turning = False
        # Part being fetched -> the messages behind it, in order.
        self._parked: dict[Hashable, list[Call]] | None = None
        self._parked_messages = 0
        # Raised at each reload: a part that arrives for an earlier incarnation is dropped.
        self._generation = 0
        # A job that has not begun, because turns before it are not committed yet.
        self._job: tuple[Call, Job] | None = None
        self._crashes: deque[float] | None = None

    @property
    def state(self) -> State:
        return self._state

    @property
    def behaviour(self) -> Behaviour:
        return self._behaviour

    @property
    def waiting(self) -> int:
        """Messages that wait for their turn, in the mailbox or parked."""
        return len(self.mailbox) + self._parked_messages

    # ------------------------------------------------------------- messages

    def deliver(self, call: Call) -> None:
        """Hand the actor a message: its turn now if it is idle, else its place in the queue."""
        self.active = True
        if self._state is _READY and not self._turning and not self.mailbox:
            self._take(call)
            if self.mailbox:
                self.wake()
        elif self._state is State.QUARANTINED or self._state is State.PASSIVE:
            call.fail(self._absent())
        elif self.waiting >= self._limits.mailbox_messages or self._mailbox_budget.is_full:
            call.fail(self._full())
        else:
            self._mailbox_budget.enter(call)
            self.mailbox.append(call)

    def _full(self) -> OverloadedError:
        if self._mailbox_budget.is_full:
            limit = self._mailbox_budget.limit_bytes
            return OverloadedError("the budget of all mailboxes", limit=limit, unit="bytes")
        return OverloadedError(
            f"the mailbox of {self.key!r}", limit=self._limits.mailbox_messages, unit="messages"
        )

    def _take(self, call: Call) -> None:
        """One message: park it, or run its turn and apply the effects."""
        if call.answered:
            return
        behaviour = self._behaviour
        request = call.request
        self._turning = True
        try:
            part = behaviour.missing(request)
            if part is not None:
                self._park(part, call)
                return
            turn = behaviour.handle(request)
            if isinstance(turn, Job):
                self._leave_ready(State.BUSY)
                self._job = (call, turn)
                return
            if (
                not turn.commands
                and not self.ahead
                and turn.then is None
                and not turn.changes
                and self._log.is_current
            ):
                answer = turn.answer
                if answer.__class__ is Refusal:
                    call.fail(answer.error)
                else:
                    call.reply(answer)
                return
            turn.owner = self
            turn.call = call
            turn.deadline_s = call.deadline
            self._log.submit(turn)
            self.uncommitted += 1
            if turn.changes:
                self.ahead += 1
                for changed, value in turn.changes:
                    behaviour.apply(changed, value)
        except RefusedError as error:
            self._refuse(call, error)
        except (OverloadedError, UnavailableError) as error:
            call.fail(error)
        except Exception as error:  # noqa: BLE001 - one actor's bug is that actor's
            self._crash(call, error)
        finally:
            self._turning = False

    def _refuse(self, call: Call, error: RefusedError) -> None:
        """Tell the caller. A refusal shows the state it was decided on, as a read does."""
        if not self.ahead and self._log.is_current:
            call.fail(error)
            return
        try:
            self.submit(Turn(Refusal(error)), call)
        except (OverloadedError, UnavailableError) as unable:
            call.fail(unable)

    def submit(self, turn: Turn, call: Call) -> None:
        """Commit more on behalf of ``call`` outside a turn. Raises `OverloadedError`.

        For writes that change nothing of the actor's state, such as an event about
        what a commit brought to light.
        """
        turn.owner = self
        turn.call = call
        turn.deadline_s = call.deadline
        self._log.submit(turn)
        self.uncommitted += 1

    async def commit(self, *commands: bytes, frees_memory: bool = False) -> None:
        """Commit ``commands`` from within a `Job` and wait for it.

        Raises `UnavailableError` when the store refuses or stays away, and
        `OverloadedError`. If cancelled, the commands may still be committed.
        """
        waiter = Waiter()
        self.submit(Turn(None, commands=commands, frees_memory=frees_memory), waiter)
        await waiter.wait()

    # -------------------------------------------------- parts of the state

    def _park(self, part: Hashable, call: Call) -> None:
        if self.waiting >= self._limits.mailbox_messages or self._mailbox_budget.is_full:
            raise self._full()
        self._mailbox_budget.enter(call)
        parked = self._parked
        if parked is None:
            parked = self._parked = {}
        self._parked_messages += 1
        behind = parked.get(part)
        if behind is not None:
            behind.append(call)
            return
        generation = self._generation

        def arrived(error: UnavailableError | None) -> None:
            if generation == self._generation:
                self._unpark(part, error)

        parked[part] = [call]
        try:
            self._behaviour.fetch(part, arrived)
        except BaseException:
            if parked.pop(part, None) is not None:
                self._parked_messages -= 1
                self._mailbox_budget.leave(call)
            raise

    def _unpark(self, part: Hashable, error: UnavailableError | None) -> None:
        parked = self._parked
        calls = parked.pop(part, None) if parked is not None else None
        if calls is None:
            return
        self._parked_messages -= len(calls)
        if not parked:
            self._parked = None
        if error is not None:
            for call in calls:
                self._mailbox_budget.leave(call)
                call.fail(error)
            return
        for position, call in enumerate(calls):
            if self._state is not _READY:
                # A turn before it ended this incarnation: they wait for the next one, in order.
                self.mailbox[:0] = calls[position:]
                if self._state is State.QUARANTINED:
                    self._fail_waiting(self._absent())
                return
            self._mailbox_budget.leave(call)
            self._take(call)
        if self.mailbox:
            self.wake()

    # ------------------------------------------------------------ outcomes

    def turn_ended(self, turn: Turn) -> None:
        """One of the actor's turns is committed or refused."""
        self.uncommitted -= 1
        if turn.changes:
            self.ahead -= 1
        if not self.uncommitted and self._state is not _READY:
            self.wake()

    def failed(self, call: Call, error: Exception) -> None:
        """What follows the commit of a turn raised; a bug in it is this actor's alone."""
        if isinstance(error, OverloadedError | UnavailableError):
            call.fail(error)
        else:
            self._crash(call, error)

    def store_refused(self, error: UnavailableError) -> None:  # noqa: ARG002 - its callers know
        """Start again from the store: memory is ahead of what it accepted."""
        self.reload()

    def reload(self) -> None:
        """Drop the state and load it again; messages wait. Does not count as a crash.

        A job that has begun is left to finish; the state is loaded after any job.
        """
        if self._may_restart():
            self._leave_ready(State.AWAITING_WRITES)

    def _may_restart(self) -> bool:
        return self._state in (State.READY, State.LOADING) or self._job is not None

    def _leave_ready(self, state: State) -> None:
        self._state = state
        self._generation += 1
        parked, self._parked = self._parked, None
        if parked:
            # They came before what is in the mailbox; messages of one part keep their order.
            self.mailbox[:0] = [call for calls in parked.values() for call in calls]
            self._parked_messages = 0
        if self._job is not None:
            # Decided on state that is dropped, so to be decided again.
            self._mailbox_budget.enter(self._job[0])
            self.mailbox.insert(0, self._job[0])
            self._job = None
        self.wake()

    def _crash(self, call: Call, error: Exception) -> None:
        logger.error("actor_crashed", actor=self.key, exc_info=error)
        if self._state is not State.QUARANTINED and self._state is not State.PASSIVE:
            self._restart()
        call.fail(error)

    def _restart(self) -> None:
        crashes = self._crashes
        if crashes is None:
            crashes = self._crashes = deque(maxlen=self._limits.intensity + 1)
        crashes.append(self._clock.monotonic_s())
        is_full = len(crashes) > self._limits.intensity
        if is_full and crashes[-1] - crashes[0] <= self._limits.period_s:
            logger.error("actor_quarantined", actor=self.key, seconds=self._limits.quarantine_s)
            self._leave_ready(State.QUARANTINED)
            self._fail_waiting(self._absent())
        elif self._may_restart():
            self._leave_ready(State.AWAITING_WRITES)

    def _absent(self) -> UnavailableError:
        if self._state is State.QUARANTINED:
            return UnavailableError(f"{self.key!r} is quarantined after repeated failures")
        return UnavailableError(f"{self.key!r} has left memory or is stopping")

    def _fail_waiting(self, error: Exception) -> None:
        waiting, self.mailbox = self.mailbox, []
        for call in waiting:
            self._mailbox_budget.leave(call)
            call.fail(error)

    # ----------------------------------------------------------- life cycle

    def passivate(self) -> bool:
        """Leave memory now, if nothing is under way. True if it did."""
        if (
            self._state is not _READY
            or self._turning
            or self.mailbox
            or self._parked_messages
            or self.uncommitted
        ):
            return False
        self._end()
        return True

    def _end(self) -> None:
        self._state = State.PASSIVE
        self._generation += 1
        self._unroute(self)
        self._behaviour.released()
        self.wake()

    async def run(self) -> None:
        """The actor's task. Ends when the actor is passivated.

        If cancelled, messages that wait fail with `UnavailableError`, and so do later ones.
        """
        try:
            while self._state is not State.PASSIVE:
                match self._state:
                    case State.LOADING:
                        await self._load()
                    case State.READY:
                        self._drain()
                        if self.mailbox:
                            await trio.lowlevel.checkpoint()
                        elif self._state is _READY:
                            await self.sleep()
                    case State.BUSY:
                        await self._do_job()
                    case State.AWAITING_WRITES:
                        await self._await_writes()
                    case State.QUARANTINED:
                        await trio.sleep(self._limits.quarantine_s)
                        self._crashes = None
                        self._state = State.AWAITING_WRITES
        finally:
            if self._state is not State.PASSIVE:
                self._leave_ready(State.PASSIVE)
                self._fail_waiting(self._absent())

    def _drain(self) -> None:
        for _ in range(_TURNS_AT_ONCE):
            if not self.mailbox or self._state is not _READY:
                break
            self._take(self._next_waiting())

    def _next_waiting(self) -> Call:
        call = self.mailbox.pop(0)
        self._mailbox_budget.leave(call)
        return call

    async def _await_writes(self) -> None:
        while self.uncommitted and self._state is State.AWAITING_WRITES:
            await self.sleep()
        if self._state is not State.AWAITING_WRITES:
            return
        if not self.mailbox and self._crashes is None:
            # Nobody waits, so the next message may load it. (One that crashes stays, and
            # with it the count of its crashes.)
            self._end()
            return
        self._behaviour.released()
        self._behaviour = self._make(self.key, self)
        self._state = State.LOADING

    async def _load(self) -> None:
        generation = self._generation
        try:
            await self._behaviour.load()
        except (UnavailableError, OverloadedError) as error:
            if generation == self._generation:
                # Unrouted first: who sends again at once is to find a new cell.
                self._end()
                self._fail_waiting(error)
            return
        except Exception as error:  # noqa: BLE001 - as in a turn
            self._crash(self._next_waiting() if self.mailbox else Waiter(), error)
            return
        if generation == self._generation:
            self._state = State.READY

    async def _do_job(self) -> None:
        while self.uncommitted and self._job is not None:
            await self.sleep()
        if self._job is None:
            return  # restarted meanwhile
        (call, job), self._job = self._job, None
        if not call.answered:
            try:
                answer = await job.run(self)
                if answer is AGAIN:
                    self._mailbox_budget.enter(call)
                    self.mailbox.insert(0, call)
                else:
                    call.reply(answer)
            except (RefusedError, OverloadedError, UnavailableError) as error:
                call.fail(error)
            except Exception as error:  # noqa: BLE001 - as in a turn
                self._crash(call, error)
            except trio.Cancelled:
                call.fail(UnavailableError(f"{self.key!r} is stopping"))
                raise
        if self._state is State.BUSY:
            self._state = State.AWAITING_WRITES
