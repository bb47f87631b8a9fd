"""Agents, their states and their results, against their indexes; both ways.

Records are read page by page, and with each page the index entries that its records need. Then the
indexes are read page by page, and for each entry Redis is asked whether its record is there. What
looks wrong is read once more, all of it at one moment, since a server may be writing meanwhile.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from dbos_actors.actors.agents.context import RUN
from dbos_actors.api.messages import ModuleState
from dbos_actors.domain import runs
from dbos_actors.maintenance import records
from dbos_actors.maintenance.findings import Finding, Report
from dbos_actors.maintenance.names import Name
from dbos_actors.maintenance.reading import WRONG_TYPE, StoreReader
from dbos_actors.store import Keys, escaped, pack

NO_RECORD: Final = "has no record"
NOT_INDEXED: Final = "is not in its index, or not where it should be"
WRONG_PLACE: Final = "has changed at different times, its indexes say"

_RUN: Final = RUN.encode()


@dataclass(frozen=True, slots=True)
class Rule:
    """What an index must hold about one record, asked with ``ask`` and mended with ``mend``."""

    ask: bytes
    holds: Callable[[Any], bool]
    problem: str
    key: str
    mend: bytes

    def fits(self, reply: Any) -> bool:
        """Whether it holds. Of an index of the wrong type nothing is demanded: it goes first."""
        return reply is WRONG_TYPE or self.holds(reply)


class AgentInspection:
    """Goes through the keys of agents, one key at a time."""

    def __init__(self, reader: StoreReader, keys: Keys, report: Report) -> None:
        self._reader = reader
        self._keys = keys
        self._report = report
        self._of_kind: dict[str, Callable[[bytes, Name], Awaitable[None]]] = {
            "agents": self._agents,
            "agents:index": partial(self._members, self._agent_exists),
            "agents:known": partial(self._members, self._is_text),
            "agents:deleting": partial(self._members, self._is_text),
            "results": self._results,
            "results-at": partial(self._members, self._result_exists),
            "states": self._states,
            "states-at": partial(self._members, self._state_exists),
            "states-of": partial(self._members, self._state_of_module_exists),
            "modules": partial(self._members, self._is_text),
            "unfinished": partial(self._members, self._is_unfinished),
            "request": partial(self._members, self._run_of_agent_exists),
        }

    async def inspect(self, key: bytes, name: Name) -> None:
        """Look at one key, which is of the right type."""
        inspect = self._of_kind.get(name.kind)
        if inspect is not None:
            await inspect(key, name)

    # --------------------------------------------------- from records to indexes

    async def _agents(self, key: bytes, name: Name) -> None:  # noqa: ARG002 - one signature
        keys = self._keys

        def rules(field: bytes, data: bytes) -> list[Rule]:
            records.agent(field, data)
            return [
                Rule(
                    pack("ZSCORE", keys.agents_index, field),
                    _has_score(0),
                    NOT_INDEXED,
                    keys.agents_index,
                    pack("ZADD", keys.agents_index, 0, field),
                ),
                self._known(field),
            ]

        await self._records(key, rules, indexes=[(keys.agents_index, b"ZREM", None)])

    def _known(self, agent_id: bytes | str) -> Rule:
        key = self._keys.agents_known
        return Rule(
            pack("SISMEMBER", key, agent_id),
            bool,
            NOT_INDEXED,
            key,
            pack("SADD", key, agent_id),
        )

    async def _results(self, key: bytes, name: Name) -> None:
        (agent_id,) = name.ids
        index = self._keys.results_at + escaped(agent_id)

        def rules(field: bytes, data: bytes) -> list[Rule]:
            received_at = records.result(agent_id, field, data).received_at
            return [
                Rule(
                    pack("ZSCORE", index, field),
                    _has_score(received_at),
                    NOT_INDEXED,
                    index,
                    pack("ZADD", index, received_at, field),
                )
            ]

        await self._of_known_agent(key, agent_id)
        await self._records(key, rules, indexes=[(index, b"ZREM", None)])

    async def _states(self, key: bytes, name: Name) -> None:
        (agent_id,) = name.ids
        keys, part = self._keys, escaped(agent_id)

        def rules(field: bytes, data: bytes) -> list[Rule]:
            return list(self._state_rules(agent_id, field, records.state(agent_id, field, data)))

        (is_deleted,) = await self._reader.read(pack("SISMEMBER", keys.agents_deleting, agent_id))
        if is_deleted == 1:
            # Its indexes go before its records; the server finishes that.
            return
        await self._of_known_agent(key, agent_id)
        await self._records(
            key,
            rules,
            indexes=[
                (keys.states_at + part, b"ZREM", None),
                (keys.unfinished + part, b"SREM", len(_RUN)),
            ],
        )
        await self._scores(key, agent_id)

    def _state_rules(self, agent_id: str, field: bytes, state: ModuleState) -> Iterator[Rule]:
        keys, part = self._keys, escaped(agent_id)
        guess_ms = max(0, state.timestamp) * 1000
        ranked = [keys.states_at + part, f"{keys.states_of}{part}:{escaped(state.module_name)}"]
        members: list[tuple[str, bytes | str]] = [(index, field) for index in ranked]
        if state.request_id:
            members.append((keys.request + escaped(state.request_id), agent_id))
        for index, member in members:
            # Not over a score that is there: it tells better when the state changed.
            mend = pack("ZADD", index, "NX", guess_ms, member)
            yield Rule(pack("ZSCORE", index, member), _is_there, NOT_INDEXED, index, mend)
        modules = keys.modules + part
        yield Rule(
            pack("SISMEMBER", modules, state.module_name),
            bool,
            NOT_INDEXED,
            modules,
            pack("SADD", modules, state.module_name),
        )
        if state.request_id:
            unfinished = keys.unfinished + part
            is_open = not runs.is_finished(state)
            yield Rule(
                pack("SISMEMBER", unfinished, state.request_id),
                lambda reply: bool(reply) is is_open,
                NOT_INDEXED if is_open else "is finished, its index says that it is not",
                unfinished,
                pack("SADD" if is_open else "SREM", unfinished, state.request_id),
            )

    async def _of_known_agent(self, key: bytes, agent_id: str) -> None:
        rule = self._known(agent_id)
        known, exists = await self._reader.at_once(rule.ask, pack("EXISTS", key))
        if known == 0 and exists:
            await self._report(
                Finding(
                    key=rule.key.encode(),
                    item=agent_id.encode(),
                    problem="does not name an agent that has something stored",
                    remedy=(rule.mend,),
                )
            )

    async def _records(
        self,
        key: bytes,
        rules: Callable[[bytes, bytes], list[Rule]],
        *,
        indexes: Sequence[tuple[str, bytes, int | None]],
    ) -> None:
        """Every record of a hash, and what its indexes hold of it.

        ``indexes`` are those that lose a record which cannot be decoded: each key, the command,
        and from where in the field's name on the member begins, None for the whole name.
        """
        reader = self._reader
        async for page in reader.fields(key):
            demanded: list[tuple[bytes, list[Rule]]] = []
            suspects: list[bytes] = []
            for field, data in page:
                try:
                    demanded.append((field, rules(field, data)))
                except records.DamagedRecordError:
                    suspects.append(field)
            replies = iter(await reader.read(*(r.ask for _, rs in demanded for r in rs)))
            for field, its_rules in demanded:
                # All replies are taken, whatever the first one says.
                held = [rule.fits(next(replies)) for rule in its_rules]
                if not all(held):
                    suspects.append(field)
            while suspects:
                suspects = await self._judge(key, suspects, rules, indexes)

    async def _judge(
        self,
        key: bytes,
        fields: list[bytes],
        rules: Callable[[bytes, bytes], list[Rule]],
        indexes: Sequence[tuple[str, bytes, int | None]],
    ) -> list[bytes]:
        """Look at records again, with their index entries, at one moment.

        Returns those that were written to meanwhile: what was demanded of them may be of yesterday.
        """
        reader = self._reader
        demanded: list[tuple[bytes, bytes, list[Rule]]] = []
        for field, data in zip(
            fields, await reader.read(*(pack("HGET", key, field) for field in fields)), strict=True
        ):
            if not isinstance(data, bytes):
                continue
            try:
                demanded.append((field, data, rules(field, data)))
            except records.DamagedRecordError as error:
                await self._damaged(key, field, data, str(error), indexes)
        questions = [
            question
            for field, _, its_rules in demanded
            for question in (pack("HGET", key, field), *(rule.ask for rule in its_rules))
        ]
        replies = iter(await reader.at_once(*questions))
        changed = []
        for field, data, its_rules in demanded:
            again = next(replies)
            broken = [rule for rule in its_rules if not rule.fits(next(replies))]
            if again != data:
                changed.append(field)
                continue
            for rule in broken:
                await self._report(
                    Finding(
                        key=key,
                        item=field,
                        problem=rule.problem,
                        detail=rule.key,
                        remedy=(rule.mend,),
                    )
                )
        return changed

    async def _damaged(
        self,
        key: bytes,
        field: bytes,
        data: bytes,
        problem: str,
        indexes: Sequence[tuple[str, bytes, int | None]],
    ) -> None:
        removals = [pack("HDEL", key, field)]
        for index, command, start in indexes:
            member = field if start is None else field[start:]
            removals.append(pack(command, index, member))
        await self._report(
            Finding(
                key=key,
                item=field,
                problem=problem,
                detail=f"{len(data)} bytes",
                drops=True,
                remedy=tuple(removals),
            )
        )

    async def _scores(self, key: bytes, agent_id: str) -> None:
        """The time of a change is the same in every index that has it: the latest one counts."""
        keys, part = self._keys, escaped(agent_id)
        reader = self._reader
        async for page in reader.fields(key):
            asked: list[tuple[bytes, list[tuple[str, bytes | str]]]] = []
            for field, data in page:
                try:
                    state = records.state(agent_id, field, data)
                except records.DamagedRecordError:
                    continue
                places: list[tuple[str, bytes | str]] = [
                    (keys.states_at + part, field),
                    (f"{keys.states_of}{part}:{escaped(state.module_name)}", field),
                ]
                if state.request_id:
                    places.append((keys.request + escaped(state.request_id), agent_id))
                asked.append((field, places))
            commands = [pack("ZSCORE", *place) for _, places in asked for place in places]
            replies = iter(await reader.read(*commands))
            for field, places in asked:
                if len({next(replies) for _ in places} - {None, WRONG_TYPE}) > 1:
                    await self._judge_scores(key, field, places)

    async def _judge_scores(
        self, key: bytes, field: bytes, places: Sequence[tuple[str, bytes | str]]
    ) -> None:
        replies = await self._reader.at_once(*(pack("ZSCORE", *place) for place in places))
        scores = {score for score in replies if isinstance(score, bytes)}
        if len(scores) < 2:
            return
        latest = max(scores, key=float)
        await self._report(
            Finding(
                key=key,
                item=field,
                problem=WRONG_PLACE,
                detail=", ".join(index for index, _ in places),
                remedy=tuple(
                    pack("ZADD", index, latest, member)
                    for (index, member), score in zip(places, replies, strict=True)
                    if isinstance(score, bytes) and score != latest
                ),
            )
        )

    # --------------------------------------------------- from indexes to records

    async def _members(self, belongs: Callable[[Name, bytes], Any], key: bytes, name: Name) -> None:
        """Every member of an index; ``belongs`` gives a question and how to read its answer."""
        reader = self._reader
        is_set = name.type == b"set"
        remove, is_member = ("SREM", "SISMEMBER") if is_set else ("ZREM", "ZSCORE")
        async for members in reader.members(key, is_sorted=not is_set):
            asked = []
            for member in members:
                try:
                    asked.append((member, belongs(name, member)))
                except records.DamagedRecordError as error:
                    await self._strange(key, member, str(error), remove)
            asked = [(member, question) for member, question in asked if question is not None]
            replies = await reader.read(*(ask for _, (ask, _) in asked))
            for (member, (ask, holds)), reply in zip(asked, replies, strict=True):
                if reply is not WRONG_TYPE and not holds(reply):
                    again, there = await reader.at_once(ask, pack(is_member, key, member))
                    is_stray = again is not WRONG_TYPE and not holds(again)
                    if is_stray and there not in (None, 0, WRONG_TYPE):
                        await self._strange(key, member, NO_RECORD, remove)

    async def _strange(self, key: bytes, member: bytes, problem: str, remove: str) -> None:
        await self._report(
            Finding(key=key, item=member, problem=problem, remedy=(pack(remove, key, member),))
        )

    def _is_text(self, name: Name, member: bytes) -> None:  # noqa: ARG002 - one signature
        records.text(member)

    def _agent_exists(self, name: Name, member: bytes) -> tuple[bytes, Callable[[Any], bool]]:  # noqa: ARG002
        records.text(member)
        return pack("HEXISTS", self._keys.agents, member), bool

    def _result_exists(self, name: Name, member: bytes) -> tuple[bytes, Callable[[Any], bool]]:
        records.text(member)
        return pack("HEXISTS", self._keys.results + escaped(name.ids[0]), member), bool

    def _state_exists(self, name: Name, member: bytes) -> tuple[bytes, Callable[[Any], bool]]:
        records.text(member)
        return pack("HEXISTS", self._keys.states + escaped(name.ids[0]), member), bool

    def _run_of_agent_exists(
        self, name: Name, member: bytes
    ) -> tuple[bytes, Callable[[Any], bool]]:
        states = self._keys.states + escaped(records.text(member))
        return pack("HEXISTS", states, RUN + name.ids[0]), bool

    def _state_of_module_exists(
        self, name: Name, member: bytes
    ) -> tuple[bytes, Callable[[Any], bool]]:
        agent_id, module = name.ids

        def holds(data: bytes | None) -> bool:
            try:
                return data is not None and (
                    records.state(agent_id, member, data).module_name == module
                )
            except records.DamagedRecordError:
                return False

        records.text(member)
        return pack("HGET", self._keys.states + escaped(agent_id), member), holds

    def _is_unfinished(self, name: Name, member: bytes) -> tuple[bytes, Callable[[Any], bool]]:
        records.text(member)
        states = self._keys.states + escaped(name.ids[0])
        return pack("HEXISTS", states, _RUN + member), bool


def _has_score(expected: int) -> Callable[[Any], bool]:
    return lambda score: score is not None and float(score) == expected


def _is_there(reply: Any) -> bool:
    return reply is not None
