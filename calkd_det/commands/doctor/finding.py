"""Findings of checks, and errors of checks turned into findings."""

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
        title: The name of the check, a word or two.
        text: The result in a sentence.
    """

    mark: Mark
    title: str
    text: str


class CannotTell(Exception):
    """A check has no answer because something is missing that training does not need."""


def attempt(title: str, make: Callable[..., T], *args: Any) -> tuple[T | None, list[Finding]]:
    """Call ``make(*args)``, and turn an exception into a finding.

    :class:`CannotTell` becomes a warning, every other exception an error.

    Returns:
        The value and an empty list, or None and a list of the finding.
    """
    try:
        return make(*args), []
    except CannotTell as reason:
        return None, [Finding('warning', title, f'cannot tell: {reason}')]
    except CalKDError as error:
        text = ' '.join(str(error).split())
    except ModuleNotFoundError as error:
        text = (
            f'needs the module {error.name}, which Python does not find: install the package that '
            'has it, or add the folder that it lies in to PYTHONPATH'
        )
    # mmdet and torch raise anything on a wrong config, and later checks can still run.
    except Exception as error:
        text = f'{type(error).__name__}: {" ".join(str(error).split())}'
    return None, [Finding('error', title, text)]


def findings_of(
    title: str, check: Callable[..., Iterable[Finding]], *args: Any
) -> Sequence[Finding]:
    """Return the findings of ``check(*args)``, or a finding of its error."""
    found, failed = attempt(title, lambda: list(check(*args)))
    return failed if found is None else found


@contextmanager
def logged_warnings(title: str) -> Iterator[list[Finding]]:
    """Collect the warnings that are logged in the block, each as a finding."""
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
    """Return the closing line of the report."""
    errors, warnings = (
        sum(finding.mark == mark for finding in findings) for mark in ('error', 'warning')
    )
    counts = f'{_count(errors, "error")}, {_count(warnings, "warning")}'
    return f'{"not ready" if errors else "ready"} to train: {counts}'


def _count(number: int, noun: str) -> str:
    return f'{number or "no"} {noun}{"" if number == 1 else "s"}'
