"""How a setting is declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field
from pydantic.config import JsonDict


def setting(
    variable: str,
    default: Any = None,
    *,
    unit: str,
    used_by: str,
    text: str,
    default_text: str | None = None,
    make_default: Callable[[], Any] | None = None,
    **limits: Any,
) -> Any:
    """A setting read from ``variable``; ``used_by`` names the part that acts on it."""
    extra: JsonDict = {"unit": unit, "used_by": used_by, "default_text": default_text}
    if make_default is not None:
        limits["default_factory"] = make_default
    else:
        limits["default"] = default
    return Field(validation_alias=variable, description=text, json_schema_extra=extra, **limits)
