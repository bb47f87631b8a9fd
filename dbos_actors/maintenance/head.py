"""The keys that a server reads before it takes a store: layout, commit and owner.

Nothing can own a store whose head is damaged, so the head is mended without ownership: in one
transaction that fails if anybody touches these keys meanwhile, and only if no live server is named.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from typing import Any, Final

from dbos_actors.errors import OwnedElsewhereError, UnusableStoreError
from dbos_actors.maintenance.findings import Finding
from dbos_actors.maintenance.reading import WRONG_TYPE, StoreReader
from dbos_actors.store import Keys, pack
from dbos_actors.store.keys import LAYOUT_VERSION
from dbos_actors.store.ownership import OwnerProcess, is_gone, this_process

_COMMIT: Final = re.compile(rb"[0-9]+:[0-9]+")
_NEVER_EXPIRES: Final = -1


async def findings(reader: StoreReader, keys: Keys) -> list[Finding]:
    """What is wrong with the head.

    Raises `UnusableStoreError` if the layout is of a later version: nothing is to be judged then.
    """
    layout, commit, owner, expires = await reader.at_once(*_questions(keys))
    return list(_judged(keys, layout, commit, owner, expires))


def _questions(keys: Keys) -> list[bytes]:
    return [
        pack("GET", keys.layout),
        pack("GET", keys.commit),
        pack("GET", keys.owner),
        pack("PTTL", keys.owner),
    ]


def _judged(keys: Keys, layout: Any, commit: Any, owner: Any, expires: int) -> Iterator[Finding]:
    if layout is WRONG_TYPE or (layout is not None and not layout.isdigit()):
        # Which it was cannot be told any more. The next start writes the one it knows.
        yield _dropped(keys.layout, "is no layout version", pack("UNLINK", keys.layout))
    elif layout is not None and int(layout) > LAYOUT_VERSION:
        raise UnusableStoreError(
            f"the store's layout version is {int(layout)}, this program knows version "
            f"{LAYOUT_VERSION} and earlier: use a newer program"
        )
    if commit is WRONG_TYPE or (commit is not None and not _COMMIT.fullmatch(commit)):
        # Above every epoch there was: they rise by at most 2**16 at each start.
        fresh = b"%d:0" % int(time.time() * 1000)
        mends = (pack("UNLINK", keys.commit), pack("SET", keys.commit, fresh))
        yield _dropped(keys.commit, "is no epoch:sequence", *mends)
    is_ours = isinstance(owner, bytes) and OwnerProcess.from_json(owner) is not None
    if owner is not None and not is_ours and expires == _NEVER_EXPIRES:
        # A server's own always expires; this one would keep servers out for ever.
        yield _dropped(keys.owner, "names no server", pack("UNLINK", keys.owner))


def _dropped(key: str, problem: str, *remedy: bytes) -> Finding:
    return Finding(key=key.encode(), problem=problem, drops=True, remedy=remedy)


async def mend(reader: StoreReader, keys: Keys) -> None:
    """Mend what `findings` finds.

    Raises:
        OwnedElsewhereError: a server that may live owns the store.
        UnusableStoreError: the layout is of a later version.
    """
    while True:
        watched = pack("WATCH", keys.layout, keys.commit, keys.owner)
        _, layout, commit, owner, expires = await reader.read(watched, *_questions(keys))
        found = list(_judged(keys, layout, commit, owner, expires))
        if not found:
            await reader.read(pack("UNWATCH"))
            return
        _refuse_owned(owner, expires)
        remedy = [command for finding in found for command in finding.remedy]
        if await reader.at_once_watched(*remedy):
            return


async def refuse_owned(reader: StoreReader, keys: Keys) -> None:
    """Raises `OwnedElsewhereError` if a server that may live owns the store."""
    _, _, owner, expires = await reader.at_once(*_questions(keys))
    _refuse_owned(owner, expires)


def _refuse_owned(owner: Any, expires: int) -> None:
    if owner is None or expires == _NEVER_EXPIRES:
        return
    holder = OwnerProcess.from_json(owner) if isinstance(owner, bytes) else None
    ours = this_process(address="", random=random.Random(0))  # noqa: S311 - nobody sees it
    if holder is None or not is_gone(holder, seen_from=ours):
        raise OwnedElsewhereError(str(holder or "an unknown program"))
