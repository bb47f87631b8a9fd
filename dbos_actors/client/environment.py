"""The environment variables that clients read."""

from __future__ import annotations

import os
from typing import Final

ADDRESS_VARIABLE: Final = "DBOS_ADDRESS"
"""Where the server is: ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:PATH``."""

TOKEN_VARIABLE: Final = "DBOS_TOKEN"  # noqa: S105 - the variable's name
"""The token that the command line sends."""

CLIENT_VARIABLES: Final = {
    ADDRESS_VARIABLE: "Where clients and commands look for the server.",
    TOKEN_VARIABLE: "The token that commands send.",
}
"""Name -> what it says."""

DEFAULT_ADDRESS: Final = "localhost:50051"


def default_address() -> str:
    """The address of a client that names none: ``DBOS_ADDRESS``, or ``localhost:50051``."""
    return os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
