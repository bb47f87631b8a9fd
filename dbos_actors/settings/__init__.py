"""Every setting of the service: declared once, read from the environment, documented by itself."""

from dbos_actors.settings.declaration import Settings
from dbos_actors.settings.lists import split_list
from dbos_actors.settings.loading import load_settings, unknown_variables
from dbos_actors.settings.reference import descriptions, markdown

__all__ = [
    "Settings",
    "descriptions",
    "load_settings",
    "markdown",
    "split_list",
    "unknown_variables",
]
