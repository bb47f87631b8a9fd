"""The other end of a connection, as servers and clients show it to their users."""

from __future__ import annotations

import socket
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Final

NAMES_MAX: Final = 64
"""Of one certificate: more are not looked at."""

_KINDS: Final = {"IP Address": "IP"}
"""As Python's `ssl` calls them, where that differs."""


class Peer:
    """Who is at the other end of a call (`grpclib.protocol.Peer`)."""

    __slots__ = ("_certificate", "_name")

    def __init__(self, name: str, certificate: dict[str, Any] | None) -> None:
        self._name = name
        self._certificate = certificate

    def __str__(self) -> str:
        return self._name

    def addr(self) -> tuple[str, int] | None:
        """Host and port; None if the connection is not TCP."""
        _, _, address = self._name.partition(":")
        host, _, port = address.rpartition(":")
        return (host.strip("[]"), int(port)) if host else None

    def cert(self) -> dict[str, Any] | None:
        """The certificate by which it has authenticated itself; None if there is none."""
        return self._certificate


def names_of(certificate: dict[str, Any] | None) -> tuple[str, ...]:
    """The names in a certificate (`ssl.SSLSocket.getpeercert`), each with its kind.

    ``DNS:``, ``URI:``, ``IP:`` and ``email:`` for alternative names, in their order; then ``CN:``
    for the subject's common names.
    """
    if not certificate:
        return ()
    names = [
        f"{_KINDS.get(kind, kind)}:{value}" for kind, value in certificate.get("subjectAltName", ())
    ]
    names += [
        f"CN:{value}"
        for parts in certificate.get("subject", ())
        for field, value in parts
        if field == "commonName"
    ]
    return tuple(names[:NAMES_MAX])


def peer_name(sock: socket.socket) -> str:
    """The other end, as gRPC writes it: ``ipv4:1.2.3.4:5``, ``ipv6:[::1]:5`` or ``unix:``."""
    try:
        name = sock.getpeername()
    except OSError:
        return "unknown:"
    if sock.family == socket.AF_INET:
        return f"ipv4:{name[0]}:{name[1]}"
    if sock.family == socket.AF_INET6:
        return f"ipv6:[{name[0]}]:{name[1]}"
    return "unix:"


def is_loopback(sock: socket.socket) -> bool:
    """Whether the other end came to an address that only this machine has."""
    try:
        name = sock.getsockname()
    except OSError:
        return False
    if sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return False
    return ip_address(name[0].partition("%")[0]).is_loopback


_SILENCE_S: Final = 60
_PROBES: Final = 3
_PROBE_S: Final = 20


def watch_for_silence(sock: socket.socket) -> None:
    """Have TCP find out whether the other end is still there, once it has been silent for long.

    For connections whose protocol has no ping of its own. A socket file needs none of it.
    """
    if sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    with suppress(OSError):  # the other end has gone: that is known soon
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", _SILENCE_S),
            ("TCP_KEEPINTVL", _PROBE_S),
            ("TCP_KEEPCNT", _PROBES),
        ):
            if hasattr(socket, name):  # not every system has them
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
