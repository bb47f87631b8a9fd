"""The roles, and the one table of which role may call which method.

A method that the table does not list is for `Role.ADMIN` alone, so a method that is added and
forgotten here is closed and not open. Health checks need no token, hence no role
(`dbos_actors.rpc.server.strangers`). Reflection is for every role.

``docs/access.md`` has the table as `markdown` prints it (``dbos-actors token roles``).
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from dbos_actors.api.messages import DESCRIPTOR

_SERVICE: Final = DESCRIPTOR.services_by_name["DBOS"]


class Role(Enum):
    """What a principal is there for."""

    ADMIN = "admin"
    """An operator: every method, also those that are in no table."""
    CONTROL = "control"
    """A control server: all the methods of the contract."""
    WORKER = "worker"
    """Takes tasks and settles them."""
    READER = "reader"
    """Looks, and changes nothing."""


_CONTROL: Final = frozenset({Role.ADMIN, Role.CONTROL})
_WORK: Final = _CONTROL | {Role.WORKER}
_READ: Final = _CONTROL | {Role.READER}
_EVERY: Final = frozenset(Role)

ROLES_OF: Final[dict[str, frozenset[Role]]] = {
    "RegisterAgent": _CONTROL,
    "Heartbeat": _CONTROL,
    "GetAgent": _READ,
    "ListAgents": _READ,
    "DeleteAgent": _CONTROL,
    "SetModuleState": _CONTROL,
    "GetModuleState": _READ,
    "ListModuleStates": _READ,
    "StoreResult": _CONTROL,
    "StoreResults": _CONTROL,
    "GetResult": _READ,
    "ListResults": _READ,
    "ScheduleTask": _CONTROL,
    "CancelTask": _CONTROL,
    "RequeueTask": _CONTROL,
    "GetTask": _EVERY,
    "ListTasks": _READ,
    # With DBOS_DUE_TASKS_LEASE it leases what it lists, so it is not for readers.
    "ListDueTasks": _WORK,
    "LeaseTasks": _WORK,
    "ExtendLease": _WORK,
    "AckTask": _WORK,
    "NackTask": _WORK,
    "SubscribeTasks": _WORK,
    "GetEvents": _READ,
    "Watch": _READ,
    "Statistics": _READ,
}
"""Method of the contract -> who may call it."""

_REFLECTION: Final = frozenset(
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo".encode()
    for version in ("v1", "v1alpha")
)


def paths_of(role: Role) -> frozenset[bytes] | None:
    """The full paths of the methods that a role may call; None: of every method."""
    if role is Role.ADMIN:
        return None
    methods = (name for name, roles in ROLES_OF.items() if role in roles)
    return _REFLECTION.union(f"/{_SERVICE.full_name}/{name}".encode() for name in methods)


def denial(role: Role, path: bytes) -> str:
    """What a caller of a method is told whose role may not call it."""
    name = path.rpartition(b"/")[2].decode("ascii", "replace")
    needed = [one.value for one in Role if one in ROLES_OF.get(name, {Role.ADMIN})]
    return f"the role {role.value!r} may not call {name}, which needs {' or '.join(needed)}"


def markdown() -> str:
    """The table of ``docs/access.md``: every method of the contract, in its order."""
    roles = list(Role)
    lines = [
        "| method | " + " | ".join(f"`{role.value}`" for role in roles) + " |",
        "|---" * (len(roles) + 1) + "|",
    ]
    for method in _SERVICE.methods:
        allowed = ROLES_OF.get(method.name, {Role.ADMIN})
        cells = ("yes" if role in allowed else "-" for role in roles)
        lines.append(f"| {method.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
