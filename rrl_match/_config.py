"""What the configs of the method have in common."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


class CheckedConfig:
    """Checks that numbers are positive and that ranges rise."""

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            numbers = value if isinstance(value, tuple) else (value,)
            if one.metadata.get("signed"):
                continue
            if not all(is_number(number) and number >= 0 for number in numbers):
                raise ValueError(f"{one.name} must not be negative, got {value!r}")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
