"""The store's Lua scripts, in Python: a simulated Redis does not speak Lua.

Each is known by its text. `test_commands.py` runs them beside a real
server's Lua, so a script that changes in the product has to change here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from dbos_actors.actors.event_log import APPEND_IF_NEW_SCRIPT
from dbos_actors.store.batch import COMMIT_SCRIPT, RENEW_SCRIPT
from dbos_actors.store.ownership import TAKE_SCRIPT
from tests.simulation.redis.arguments import Arguments
from tests.simulation.redis.replies import CommandError

Call = Callable[[Arguments], Any]
"""``redis.pcall``: an error is returned as a value."""


def run_script(text: bytes, keys: Arguments, arguments: Arguments, call: Call) -> Any:
    """Run a script the store uses. Raises `CommandError` for any other."""
    script = _SCRIPTS.get(text.decode())
    if script is None:
        raise CommandError("ERR the simulation does not know this script")
    return script(keys, arguments, call)


def _must(reply: Any) -> Any:
    """``redis.call``: an error ends the script."""
    if isinstance(reply, CommandError):
        raise reply
    return reply


def _commit(keys: Arguments, arguments: Arguments, call: Call) -> Any:
    before, after, lease, owner, lease_ms = arguments[:5]
    if (_must(call([b"GET", keys[0]])) or b"") != before:
        return None
    replies = []
    at = 5
    while at < len(arguments):
        size = int(arguments[at])
        replies.append(call(arguments[at + 1 : at + 1 + size]))
        at += size + 1
    _must(call([b"SET", keys[0], after]))
    if lease == b"renew":
        _must(call([b"SET", keys[1], owner, b"PX", lease_ms]))
    if lease == b"release":
        _must(call([b"DEL", keys[1]]))
    return replies


def _renew(keys: Arguments, arguments: Arguments, call: Call) -> Any:
    before, owner, lease_ms = arguments
    if (_must(call([b"GET", keys[0]])) or b"") != before:
        return None
    _must(call([b"SET", keys[1], owner, b"PX", lease_ms]))
    return []


def _take(keys: Arguments, arguments: Arguments, call: Call) -> Any:
    held, step, owner, lease_ms, version = arguments
    if (_must(call([b"GET", keys[1]])) or b"") != held:
        return None
    layout = _must(call([b"GET", keys[2]]))
    if layout is not None and not layout.isdigit():
        raise CommandError(f"UNUSABLE the key {keys[2].decode()} is no version")
    if layout is not None and int(layout) > int(version):
        raise CommandError(
            f"UNUSABLE its layout version is {layout.decode()}, this program knows version "
            f"{version.decode()} and earlier: use a newer program"
        )
    commit = _must(call([b"GET", keys[0]]))
    epoch = 0
    if commit is not None:
        text, colon, sequence = commit.partition(b":")
        if not (colon and text.isdigit() and sequence.isdigit()):
            raise CommandError(f"UNUSABLE the key {keys[0].decode()} is no epoch:sequence")
        epoch = int(text)
    _must(call([b"SET", keys[2], version]))
    taken = b"%d:0" % (epoch + int(step))
    _must(call([b"SET", keys[0], taken]))
    _must(call([b"SET", keys[1], owner, b"PX", lease_ms]))
    return [commit, taken]


def _append_if_new(keys: Arguments, arguments: Arguments, call: Call) -> Any:
    field, length, entry_id, event = arguments
    if call([b"HEXISTS", keys[1], field]) == 0:
        _must(call([b"XADD", keys[0], b"MAXLEN", b"~", length, entry_id, b"e", event]))
        return 1
    return 0


_SCRIPTS: Final[dict[str, Callable[[Arguments, Arguments, Call], Any]]] = {
    APPEND_IF_NEW_SCRIPT: _append_if_new,
    COMMIT_SCRIPT: _commit,
    RENEW_SCRIPT: _renew,
    TAKE_SCRIPT: _take,
}
