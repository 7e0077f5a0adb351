"""Errors that this project raises for a user's mistake. Each message names the config key."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class CalKDError(Exception):
    """Base class of every error that CalKD-Det raises on purpose."""


class ConfigError(CalKDError, ValueError):
    """A config value is missing, mistyped, out of range or contradicts another one."""


class TeacherError(CalKDError, RuntimeError):
    """The teacher's config or checkpoint cannot be read, or does not fit."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint for an error message: the nearest known word, or all known words."""
    known = sorted(known)
    near = get_close_matches(word, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f'known: {", ".join(known)}'
