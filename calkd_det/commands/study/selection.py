"""Find a study's rows: which belong to which cell, and whether they can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calkd_det.commands.study.design import CLASSIFIER, Cell, Comparison, Study
from calkd_det.commands.study.rows import Row, read_rows, settings_key
from calkd_det.errors import ConfigError


@dataclass(frozen=True)
class Selection:
    """The rows of a study.

    Attributes:
        study: Whose.
        teachers: Rows by name; those that are not there yet are missing.
        cells: Rows by the cell's name, then by seed.
        left_out: Rows of the study's cells that an earlier config was run with.
    """

    study: Study
    teachers: dict[str, Row]
    cells: dict[str, dict[int, Row]]
    left_out: int

    @property
    def wanted(self) -> int:
        """The number of student runs of the study."""
        return sum(len(cell.seeds) for cell in self.study.cells.values())

    @property
    def found(self) -> int:
        """How many of them have a row."""
        return sum(map(len, self.cells.values()))

    @property
    def rows(self) -> list[Row]:
        """All rows, teachers first."""
        return [
            *self.teachers.values(),
            *(row for rows in self.cells.values() for row in rows.values()),
        ]

    def values(self, cell: str, metric: str = 'mAP') -> dict[int, float]:
        """Return a figure of a cell by seed; shares in [0, 1].

        Args:
            cell: Its name.
            metric: A name of ``study.metrics``, which every row has, or of :data:`CLASSIFIER`,
                for the rows that have it.

        Raises:
            ConfigError: A row lacks a metric of the study.
        """
        rows = dict(sorted(self.cells[cell].items()))
        if metric in CLASSIFIER:
            samples, key = CLASSIFIER[metric]
            figures = {seed: row.get('classifier', {}).get(samples) for seed, row in rows.items()}
            return {seed: of_row[key] for seed, of_row in figures.items() if of_row is not None}
        for row in rows.values():
            if metric not in row['metrics']:
                raise ConfigError(
                    f'study.metrics names {metric!r}, but the row {row["hash"]} of {cell!r} in '
                    f"'{self.study.results}' has only {', '.join(row['metrics'])}: remove that "
                    'row, and its run is done again, or the metric'
                )
        return {seed: row['metrics'][metric] for seed, row in rows.items()}

    def sides(
        self, comparison: Comparison, metric: str = 'mAP'
    ) -> tuple[dict[int, float], dict[int, float]]:
        """Return the mean of a figure on both sides of a comparison, by seed.

        Raises:
            ConfigError: Two runs of a seed did not start from the same weights, or did not see
                the same images in the same order: they are no pair.
        """
        of, to = self._side(comparison.of, metric), self._side(comparison.to, metric)
        for seed in set(of) & set(to):
            self._check_pair(seed, [*comparison.of, *comparison.to])
        return of, to

    def _side(self, names: Sequence[str], metric: str) -> dict[int, float]:
        """Return the mean over several cells, for each seed that all of them have."""
        values = [self.values(name, metric) for name in names]
        seeds = set.intersection(*map(set, values))
        return {seed: sum(v[seed] for v in values) / len(values) for seed in sorted(seeds)}

    def _check_pair(self, seed: int, names: Sequence[str]) -> None:
        prints = {}
        for name in names:
            found = self.cells[name][seed].get('fingerprint')
            if found and not found['resumed']:
                prints[name] = (found['initial_weights'], found['data_order'])
        if len(set(prints.values())) > 1:
            raise ConfigError(
                f'seed {seed} of {", ".join(map(repr, prints))} did not start from the same '
                'weights or did not see the same images in the same order: no pair. Does a loss '
                'draw random numbers, or does a cell change more than teacher and loss?'
            )


def select(study: Study) -> Selection:
    """Read a study's rows from its results file alone.

    Rows are found by their settings: teacher, T, loss, student and seed. Where a config was
    changed in between, those of the last row's config count, and the others are left out. A teacher
    is the one that the last student learnt from: another study may have one of the same name. While
    there is no student, a teacher whose name several rows have is left out.

    Raises:
        ConfigError: The results file is damaged.
    """
    rows = read_rows(study.results)
    wanted = {settings_key(study.settings(cell)): cell for cell in study.cells.values()}
    own = [
        (wanted[key], row)
        for row in rows
        if row['kind'] == 'student' and (key := settings_key(row['settings'])) in wanted
    ]
    found = {name: _teacher_of(name, rows, own) for name in study.teachers}
    teachers = {name: row for name, row in found.items() if row is not None}
    current = own[-1][1]['base_hash'] if own else None
    cells: dict[str, dict[int, Row]] = {name: {} for name in study.cells}
    left_out = 0
    for cell, row in own:
        teacher = row.get('teacher')
        stale = row['base_hash'] != current or (
            teacher is not None and teacher['hash'] != teachers.get(cell.teacher, {}).get('hash')
        )
        if stale:
            left_out += 1
        elif row['seed'] in cell.seeds:
            cells[cell.name][row['seed']] = row
    return Selection(study, teachers, cells, left_out)


def _teacher_of(name: str, rows: Sequence[Row], students: Sequence[tuple[Cell, Row]]) -> Row | None:
    """Return a teacher's row, or None where there is none or where several may be meant.

    Args:
        name: The teacher's name.
        rows: All rows.
        students: Cells with the rows of their students.
    """
    known = [row for row in rows if row['kind'] == 'teacher']
    learnt = [row['teacher']['hash'] for cell, row in students if cell.teacher == name]
    by_hash = {row['hash']: row for row in known}
    for teacher in reversed(learnt):
        if teacher in by_hash:
            return by_hash[teacher]
    named = [row for row in known if row['name'] == name]
    return named[-1] if named and (learnt or len(named) == 1) else None
