"""What a check finds, and how a check that fails becomes a finding."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from mmengine.logging import MMLogger

from calkd_det.errors import CalKDError

Mark = Literal['ok', 'warning', 'error']
T = TypeVar('T')


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        mark: Whether training can start with this: ``ok`` and ``warning`` yes, ``error`` no.
        title: What was looked at, a word or two.
        text: What was found.
    """

    mark: Mark
    title: str
    text: str


class CannotTell(Exception):
    """Something that training does not need keeps a check from its answer."""


def attempt(title: str, make: Callable[..., T], *args: Any) -> tuple[T | None, list[Finding]]:
    """Calls ``make(*args)``; where it raises, an error's sentence takes the place of its value.

    Of :class:`CannotTell` it is a warning's.

    Returns:
        The value and no finding, or None and one.
    """
    try:
        return make(*args), []
    except CannotTell as reason:
        return None, [Finding('warning', title, f'cannot tell: {reason}')]
    except CalKDError as error:
        text = ' '.join(str(error).split())
    # What mmdet and torch raise on a wrong config is of every kind, and the next checks can
    # still tell something.
    except Exception as error:
        text = f'{type(error).__name__}: {" ".join(str(error).split())}'
    return None, [Finding('error', title, text)]


def findings_of(
    title: str, check: Callable[..., Iterable[Finding]], *args: Any
) -> Sequence[Finding]:
    """All findings of ``check(*args)``, or its error."""
    found, failed = attempt(title, lambda: list(check(*args)))
    return failed if found is None else found


@contextmanager
def logged_warnings(title: str) -> Iterator[list[Finding]]:
    """Collects what is logged as a warning in the block, each as a finding."""
    found: list[Finding] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(Finding('warning', title, record.getMessage()))

    collector = Collector(logging.WARNING)
    logger = MMLogger.get_current_instance()
    logger.addHandler(collector)
    try:
        yield found
    finally:
        logger.removeHandler(collector)


def verdict(findings: Sequence[Finding]) -> str:
    """The closing line."""
    errors, warnings = (
        sum(finding.mark == mark for finding in findings) for mark in ('error', 'warning')
    )
    counts = f'{_count(errors, "error")}, {_count(warnings, "warning")}'
    return f'{"not ready" if errors else "ready"} to train: {counts}'


def _count(number: int, noun: str) -> str:
    return f'{number or "no"} {noun}{"" if number == 1 else "s"}'
