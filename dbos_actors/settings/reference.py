"""What the settings say about themselves: the table of ``docs/settings.md``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic.fields import FieldInfo

from dbos_actors.settings.declaration import Settings
from dbos_actors.settings.quotas import QuotaSettings

# Their values can hold a password: never shown.
SECRET = frozenset({"REDIS_ADDR"})


@dataclass(frozen=True, slots=True)
class Description:
    """One setting, for people."""

    name: str
    variable: str
    unit: str
    default: str
    limits: str
    used_by: str
    text: str

    @property
    def is_secret(self) -> bool:
        """Whether its value must not be shown."""
        return self.variable in SECRET


def _default(field: FieldInfo, unit: str) -> str:
    value = field.default
    if value is None or value == "":
        return "unset"
    if unit == "size":
        for name, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
            if value and value % factor == 0:
                return f"`{value // factor}{name}`"
        return f"`{value}`"
    if unit == "duration":
        for name, seconds in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
            if value and value % seconds == 0:
                return f"`{value / seconds:g}{name}`"
        return f"`{value:g}`"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


def _limits(field: FieldInfo) -> str:
    signs = {"ge": ">=", "le": "<=", "min_length": "length >=", "max_length": "length <="}
    found = [
        f"{sign} {getattr(item, name)}"
        for item in field.metadata
        for name, sign in signs.items()
        if hasattr(item, name)
    ]
    return ", ".join(found)


def descriptions() -> Iterator[Description]:
    """Every setting, in the order of the class; then the quotas, which are its base class's."""
    fields = Settings.model_fields
    quotas = QuotaSettings.model_fields
    for name in [*(name for name in fields if name not in quotas), *quotas]:
        field = fields[name]
        extra = field.json_schema_extra
        if not isinstance(extra, dict):  # pragma: no cover - `setting` makes them all
            raise TypeError(f"{name} was not declared with setting")
        unit = str(extra["unit"])
        yield Description(
            name=name,
            variable=str(field.validation_alias),
            unit=unit,
            default=str(extra["default_text"] or _default(field, unit)),
            limits=_limits(field),
            used_by=str(extra["used_by"]),
            text=field.description or "",
        )


def markdown() -> str:
    """The table of ``docs/settings.md``."""
    lines = ["| variable | unit | default | used by | meaning |", "|---|---|---|---|---|"]
    for item in descriptions():
        text = f"{item.text} Limits: {item.limits}." if item.limits else item.text
        lines.append(
            f"| `{item.variable}` | {item.unit} | {item.default} | {item.used_by} | {text} |"
        )
    return "\n".join(lines) + "\n"
