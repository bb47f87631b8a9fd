"""Principals: those who call, as the token file names them."""

from __future__ import annotations

from dbos_actors.access.quotas import Account, Rates
from dbos_actors.access.roles import Role, paths_of


class Principal:
    """One name of the token file. It stays the same object while the name keeps its role."""

    __slots__ = ("account", "name", "paths", "role")

    def __init__(self, name: str, role: Role) -> None:
        self.name = name
        self.role = role
        self.paths = paths_of(role)
        """Of the methods that it may call; None: of every method."""
        self.account: Account | None = None
        """What it may use in a second; None: there is no limit."""

    def limit(self, rates: Rates) -> None:
        """Give it an account of these rates, unless it has that already."""
        if not rates:
            self.account = None
        elif self.account is None or self.account.rates != rates:
            self.account = Account(rates)

    def __str__(self) -> str:
        return self.name

    def may_call(self, path: bytes) -> bool:
        """Whether its role may call the method with that full path."""
        return self.paths is None or path in self.paths
