"""Heads of mmdet that were tried and that no tap can read, with the reason."""

from __future__ import annotations

REFUSED: dict[str, str] = {}
