"""Principals: those who call, as the token file names them."""

from __future__ import annotations

from dbos_actors.access.roles import Role, paths_of


class Principal:
    """One name of the token file. It stays the same object while the name keeps its role."""

    __slots__ = ("name", "paths", "role")

    def __init__(self, name: str, role: Role) -> None:
        self.name = name
        self.role = role
        self.paths = paths_of(role)
        """Of the methods that it may call; None: of every method."""

    def __str__(self) -> str:
        return self.name

    def may_call(self, path: bytes) -> bool:
        """Whether its role may call the method with that full path."""
        return self.paths is None or path in self.paths
