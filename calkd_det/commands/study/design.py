"""A study: data, student, teachers, cells, seeds and what is compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FITTED = 'fitted'
FIGURES = ('temperature', 'paired', 'across', 'reliability')
Temperature = float | str | None
# Figures of a row by name, and what mmdet's CocoMetric calls them.
METRICS = {'mAP': 'coco/bbox_mAP', 'AP50': 'coco/bbox_mAP_50', 'AP75': 'coco/bbox_mAP_75'}
# What a row of `measure_students` adds, by name: of which samples, and which figure.
CLASSIFIER = {
    f'{figure} on {words}': (samples, key)
    for samples, words in (('objects', 'objects'), ('distillation', 'samples'))
    for figure, key in (
        ('accuracy', 'accuracy'), ('NLL', 'nll'), ('Brier score', 'brier'), ('ECE', 'ece')
    )
}  # fmt: skip
# Those in [0, 1], whose differences are in points.
SHARES = tuple(name for name in CLASSIFIER if name.startswith(('accuracy', 'ECE')))


@dataclass(frozen=True)
class Data:
    """Where the data come from, and the held-out images that teachers are calibrated on.

    Attributes:
        mini: arguments of ``write_mini_dataset``, ``out_dir`` included; or None.
        version: what a run's hash knows of data that are not ``mini``'s.
        held_out_ann: COCO annotation file of the held-out images.
        held_out_images: their folder.
    """

    mini: dict[str, Any] | None
    version: str
    held_out_ann: Path
    held_out_images: Path


@dataclass(frozen=True)
class Preparation:
    """A command that has to run once before all runs.

    Attributes:
        command: its words; ``{python}`` and ``{mmdet_tools}`` stand for the interpreter and the
            folder of mmdet's ``train.py``, ``{tools}`` for that of CalKD-Det's tools.
        creates: a file that is there once it has run.
    """

    command: tuple[str, ...]
    creates: Path


@dataclass(frozen=True)
class Detector:
    """A config with changes.

    Attributes:
        name: in rows, tables and figures.
        config: path, or ``mmdet::FAMILY/NAME.py``.
        cfg_options: as after ``--cfg-options``, dotted keys.
        seed: of a teacher's training.
        checkpoint: weights that are there already, ``'zoo'`` for the model zoo's; None: train.
    """

    name: str
    config: str
    cfg_options: dict[str, Any]
    seed: int = 0
    checkpoint: str | None = None


@dataclass(frozen=True)
class Cell:
    """One way to train the student, run once for every seed.

    Attributes:
        name: in tables and figures.
        teacher: name of a teacher; None for the student alone.
        temperature: the teacher's T, or ``'fitted'``; None for the student alone and for a cell
            with a calibrator.
        loss: config of the distillation loss, or of several by name; None for the student alone.
        seeds: of its runs.
        calibrator: config of the teacher's calibrator in place of a T. ``'fitted'`` stands for the
            calibration file of the teacher.
        teacher_options: further keys of ``model.teacher``, such as ``denoising``.
    """

    name: str
    teacher: str | None
    temperature: Temperature
    loss: dict[str, Any] | None
    seeds: tuple[int, ...]
    calibrator: dict[str, Any] | None = None
    teacher_options: dict[str, Any] = field(default_factory=dict)

    @property
    def reads_calibration(self) -> bool:
        """Whether the calibrator reads the calibration file of the teacher."""
        return self.calibrator is not None and FITTED in self.calibrator.values()


@dataclass(frozen=True)
class Comparison:
    """The mean of some cells less the mean of others, paired by seed; both sides by cell name."""

    of: tuple[str, ...]
    to: tuple[str, ...]
    name: str


@dataclass(frozen=True)
class Primary:
    """The one comparison that a study was planned for.

    Attributes:
        comparison: what is compared.
        metric: the figure that it is of: a name of ``Study.metrics``, or one of
            :data:`CLASSIFIER` that is a share.
        advice: what a user should do, by what is shown: ``'higher'``, ``'lower'`` or ``'none'``.
    """

    comparison: Comparison
    metric: str
    advice: dict[str, str]


@dataclass(frozen=True)
class Study:
    """A study config, checked.

    Attributes:
        name: of its blocks on the page and of its figures.
        student: the CalKD config of the student; its teacher and loss are set by the cells.
        teachers: by name.
        cells: by name.
        question: what the study asks, for a reader; '' without a primary comparison.
        primary: the comparison that answers it, written down before the runs; or None.
        comparisons: what is reported, in order; that of ``primary`` is the first.
        figures: of :data:`FIGURES`.
        reliability: the teachers whose diagrams are drawn, at most two.
        metrics: the figures of a row by name, each with its key in the evaluators' output.
            Comparisons are of ``mAP``.
        target: the difference in points that should be told from zero.
        deterministic: of mmengine's ``randomness``.
        resume: go on with an interrupted training from its last checkpoint; else start it over.
        keep_weights: keep the weights of finished students.
        gpus_per_run: more than one: each training is started by torchrun on so many.
        measured_images: at most so many images measure a teacher's calibration; None: all.
        measure_students: measure each student's classifier on its validation images as well.
        work_dir: folder of the runs.
        results: the JSON-lines file of the rows.
        page: the Markdown page that the report fills.
        summary_page: the page whose block ``NAME summary`` holds the primary comparison's answer.
        pictures: folder of the figures.
    """

    name: str
    title: str
    data: Data
    prepare: tuple[Preparation, ...]
    student: Detector
    teachers: dict[str, Detector]
    cells: dict[str, Cell]
    question: str
    primary: Primary | None
    comparisons: tuple[Comparison, ...]
    figures: tuple[str, ...]
    reliability: tuple[str, ...]
    metrics: dict[str, str]
    target: float
    deterministic: bool
    resume: bool
    keep_weights: bool
    gpus_per_run: int
    measured_images: int | None
    measure_students: bool
    work_dir: Path
    results: Path
    page: Path
    summary_page: Path
    pictures: Path

    def settings(self, cell: Cell) -> dict[str, Any]:
        """Return what the rows of a cell keep of it; they are found by it."""
        settings = {
            'student': self.student.name,
            'teacher': cell.teacher,
            'temperature': cell.temperature,
            'loss': cell.loss,
        }
        # Rows were written before cells had these keys.
        if cell.calibrator is not None:
            settings['calibrator'] = cell.calibrator
        if cell.teacher_options:
            settings['teacher_options'] = cell.teacher_options
        return settings
