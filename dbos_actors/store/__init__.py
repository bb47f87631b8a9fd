"""Redis: group commit, batched reads, ownership and recovery. Knows nothing of agents.

`open_store` takes ownership of a partition and gives a `Store`; everything else
here serves that. Only this package imports ``redis`` or ``hiredis``.
"""

from dbos_actors.store.connection import ConnectionLostError
from dbos_actors.store.connector import Connector, TcpConnector, UnixConnector, connector_for
from dbos_actors.store.keys import Keys, escaped
from dbos_actors.store.opening import open_store
from dbos_actors.store.own_commit import OwnCommit
from dbos_actors.store.plain import open_connection
from dbos_actors.store.resp import ReplyError, pack, pack_argument, pack_head, unpacked
from dbos_actors.store.settings import StoreSettings, StoreState, StoreStatistics, StoreWarning
from dbos_actors.store.store import Store
from dbos_actors.store.submission import Owner, Submission

__all__ = [
    "ConnectionLostError",
    "Connector",
    "Keys",
    "OwnCommit",
    "Owner",
    "ReplyError",
    "Store",
    "StoreSettings",
    "StoreState",
    "StoreStatistics",
    "StoreWarning",
    "Submission",
    "TcpConnector",
    "UnixConnector",
    "connector_for",
    "escaped",
    "open_connection",
    "open_store",
    "pack",
    "pack_argument",
    "pack_head",
    "unpacked",
]
