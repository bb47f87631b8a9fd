"""Every setting of the service: declared once, read from the environment, documented by itself."""

from dbos_actors.settings.declaration import (
    Settings,
    descriptions,
    load_settings,
    markdown,
    split_addresses,
    unknown_variables,
)

__all__ = [
    "Settings",
    "descriptions",
    "load_settings",
    "markdown",
    "split_addresses",
    "unknown_variables",
]
