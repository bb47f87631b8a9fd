"""The embedded store: a private Valkey, supervised as a child process.

| module | owns |
|---|---|
| `valkey` | the child process: start, supervision, stop |
| `data` | the data directory: access rights, locks, the record of who runs on it, orphans |
| `sockets` | the folder of the socket in the temporary directory |
| `processes` | questions to a Valkey and to the system about a process |
| `launcher` | the program that becomes Valkey |

In the data directory:

- ``server.lock`` is locked by this process: a second server keeps out.
- ``valkey.lock`` is locked by the Valkey, which inherits the descriptor: as long as any
  Valkey runs on the data, even one whose server was killed, no other is started.
- ``valkey.json`` says which process that is, so that an orphan can be verified and ended.
- ``valkey.log`` is Valkey's own log, started anew beyond a size.
- ``appendonlydir`` is the data.

A Valkey that dies is started again on its data, at the same address. One whose server
dies is told to end by the kernel (`launcher`); where that is not to be had, the next
server on the data finds the orphan, verifies it and shuts it down.
"""

from dbos_actors.store.embedded.binary import valkey_binary
from dbos_actors.store.embedded.processes import EmbeddedStoreError
from dbos_actors.store.embedded.valkey import (
    Durability,
    EmbeddedStore,
    open_embedded,
)

__all__ = ["Durability", "EmbeddedStore", "EmbeddedStoreError", "open_embedded", "valkey_binary"]
