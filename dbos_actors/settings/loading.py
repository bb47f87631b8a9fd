"""Reading the settings of the environment, with errors that name the variable."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence

from pydantic import ValidationError

from dbos_actors.errors import ConfigurationError
from dbos_actors.settings.declaration import Settings
from dbos_actors.settings.reference import SECRET, descriptions


def load_settings(**overrides: object) -> Settings:
    """The settings of the environment, with ``overrides`` by field name.

    Raises `ConfigurationError`, one line naming every bad variable, its value (unless it can
    hold a password) and what it must be.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # checked by pydantic
    except ValidationError as error:
        raise ConfigurationError("; ".join(_problems(error))) from error


def _problems(error: ValidationError) -> Iterator[str]:
    variables = {item.name: item.variable for item in descriptions()}
    for detail in error.errors(include_url=False, include_context=False):
        problem = detail["msg"].removeprefix("Value error, ").replace("Input should", "must")
        if not detail["loc"]:
            yield problem
            continue
        variable = variables.get(str(detail["loc"][0]), str(detail["loc"][0]))
        value = "" if variable in SECRET else f"={detail['input']}"
        yield f"{variable}{value}: {problem}"


_PREFIX = "DBOS_"


def unknown_variables(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names in ``environment`` that look like a setting misspelt, each with the one probably meant.

    Meant is a setting without the prefix (``DBOS_REDIS_ADDR``), the only one that begins so
    (``DBOS_METRICS``), or one that is spelt nearly so. Other ``DBOS_`` names are nobody's
    business: an orchestrator sets some of its own for a service of that name, such as
    ``DBOS_SERVICE_HOST``, and ``DBOS_PORT`` with a URL.
    """
    known = [item.variable for item in descriptions()]
    found = []
    for name in sorted(set(environment).difference(known)):
        if name.startswith(_PREFIX):
            meant = _meant_by(name, environment[name], known)
            found += [(name, meant)] if meant else []
    return found


def _meant_by(name: str, value: str, known: Sequence[str]) -> str | None:
    bare = name.removeprefix(_PREFIX)
    if bare in known:
        return None if "://" in value and bare == "PORT" else bare
    longer = [variable for variable in known if variable.startswith(f"{name}_")]
    if len(longer) == 1:
        return longer[0]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
    return close[0] if close else None
