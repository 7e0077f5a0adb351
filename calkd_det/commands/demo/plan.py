"""What the demo runs, where each run leaves its files, and the command lines of mmdet's tools."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import mmdet

from calkd_det.config import config_path
from calkd_det.datasets.mini import DEFAULT_NUM_IMAGES
from calkd_det.errors import ConfigError

DEFAULT_WORK_DIR = Path('work_dirs')
DEFAULT_DATA = Path('data/mini')
DEFAULT_EPOCHS = 12
# As in configs/_base_/mini.py: what a short training has to shorten too.
BATCH_SIZE = 8
WARMUP_ITERATIONS = 100


@dataclass(frozen=True)
class Training:
    """One call of mmdet's ``train.py``."""

    name: str
    title: str
    config: str
    distilled: bool = False

    @property
    def stem(self) -> str:
        """What mmdet names the run's folder after."""
        return Path(self.config).stem


@dataclass(frozen=True)
class Evaluation:
    """One call of mmdet's ``test.py``: a training's checkpoint, through a config."""

    name: str
    title: str
    config: str
    training: Training


TEACHER = Training('teacher', 'teacher', 'mini/faster-rcnn_r18-teacher_fpn_12e_mini.py')
STUDENT = Training('student', 'student alone', 'mini/faster-rcnn_r18-student_fpn_12e_mini.py')
KD = Training('kd', 'KD', 'mini/kd_faster-rcnn_r18-teacher-student_fpn_12e_mini.py', True)
CALKD = Training(
    'calkd', 'CalKD', 'mini/calkd_faster-rcnn_r18-teacher-student_fpn_12e_mini.py', True
)
TRAININGS = (TEACHER, STUDENT, KD, CALKD)
STUDENTS = (STUDENT, KD, CALKD)

EVALUATIONS = tuple(Evaluation(run.name, run.title, run.config, run) for run in TRAININGS)
CALKD_AS_PLAIN = Evaluation(
    'calkd-plain', "CalKD's checkpoint, plain config", STUDENT.config, CALKD
)


@dataclass(frozen=True)
class Plan:
    """The demo's arguments, and what follows from them.

    Attributes:
        work_dir: the folder of all runs.
        data: the folder of the mini data set.
        epochs: how long each training lasts.
        train_images: decides how much warm-up fits into a short training.
        seed: of every training.

    Raises:
        ConfigError: ``epochs`` is below 1.
    """

    work_dir: Path = DEFAULT_WORK_DIR
    data: Path = DEFAULT_DATA
    epochs: int = DEFAULT_EPOCHS
    train_images: int = DEFAULT_NUM_IMAGES['train']
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigError(f'--epochs must be at least 1, not {self.epochs}.')

    @property
    def report_dir(self) -> Path:
        """Where the report, its pictures and the test results go."""
        return self.work_dir / 'demo'

    def folder(self, training: Training) -> Path:
        """Returns the folder of a training, the one that mmdet would choose."""
        return self.work_dir / training.stem

    def checkpoint(self, training: Training) -> Path:
        """Returns the checkpoint of a training's last epoch."""
        return self.folder(training) / f'epoch_{self.epochs}.pth'

    def test_folder(self, evaluation: Evaluation) -> Path:
        """Returns the folder of a test's results."""
        return self.report_dir / 'test' / evaluation.name

    def predictions(self, evaluation: Evaluation) -> Path:
        """Returns the file of a test's detections."""
        return self.test_folder(evaluation) / 'predictions.pkl'

    @property
    def calibration_dir(self) -> Path:
        """The folder of the teacher's calibration."""
        return self.report_dir / 'calibration'

    @property
    def calibration(self) -> Path:
        """The file that the calibration of the teacher writes."""
        return self.calibration_dir / 'temperature.json'

    def train_options(self, training: Training) -> list[str]:
        """Returns what goes behind ``--cfg-options``: only what differs from the config."""
        options = [f'randomness.seed={self.seed}', *self._data_options('train', 'val', 'test')]
        if self.epochs != DEFAULT_EPOCHS:
            # The published steps at 2/3 and 8/9.
            steps = (max(1, round(self.epochs * 2 / 3)), max(1, round(self.epochs * 8 / 9)))
            options += [
                f'train_cfg.max_epochs={self.epochs}',
                f'train_cfg.val_interval={self.epochs}',
                f'param_scheduler.1.end={self.epochs}',
                f'param_scheduler.1.milestones=[{steps[0]},{steps[1]}]',
            ]
        iterations = self.epochs * -(-self.train_images // BATCH_SIZE)
        if iterations < 4 * WARMUP_ITERATIONS:
            options.append(f'param_scheduler.0.end={max(1, iterations // 4)}')
        default = Plan().checkpoint(TEACHER)
        if training.distilled and self.checkpoint(TEACHER) != default:
            options.append(f'model.teacher.checkpoint={self.checkpoint(TEACHER).as_posix()}')
        return options

    def train_command(self, training: Training, resume_from: Path | None = None) -> list[str]:
        """Returns the command line of a training, as a user would type it."""
        command = [*_tool('train.py'), _config(training.config)]
        if self.work_dir != DEFAULT_WORK_DIR:
            command += ['--work-dir', str(self.folder(training))]
        if resume_from is not None:
            command += ['--resume', str(resume_from)]
        return [*command, '--cfg-options', *self.train_options(training)]

    def test_command(self, evaluation: Evaluation) -> list[str]:
        """Returns the command line of a test, as a user would type it."""
        options = self._data_options('test')
        return [
            *_tool('test.py'),
            _config(evaluation.config),
            str(self.checkpoint(evaluation.training)),
            *('--work-dir', str(self.test_folder(evaluation))),
            *('--out', str(self.predictions(evaluation))),
            *(['--cfg-options', *options] if options else []),
        ]

    def calibrate_command(self) -> list[str]:
        """Returns the command line of the teacher's calibration, as a user would type it."""
        return [
            shorten(sys.executable),
            _from_checkout(Path('tools', 'calibrate_teacher.py')),
            _config(TEACHER.config),
            str(self.checkpoint(TEACHER)),
            *('--ann', str(self.data / 'annotations' / 'calibration.json')),
            *('--images', str(self.data / 'calibration')),
            *('--out', str(self.calibration_dir)),
        ]

    def _data_options(self, *splits: str) -> list[str]:
        if self.data == DEFAULT_DATA:
            return []
        root = self.data.as_posix()
        evaluators = [split for split in splits if split != 'train']
        return [
            *(f'{split}_dataloader.dataset.data_root={root}/' for split in splits),
            *(f'{split}_evaluator.ann_file={root}/annotations/val.json' for split in evaluators),
        ]


def shorten(path: str | Path) -> str:
    """Returns a path relative to the current directory where it lies in it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith('..') else relative


def _tool(name: str) -> list[str]:
    tools = Path(mmdet.__file__).parent / '.mim' / 'tools'
    return [shorten(sys.executable), shorten(tools / name)]


def _config(name: str) -> str:
    return _from_checkout(Path('configs', name))


def _from_checkout(path: Path) -> str:
    """The path in a checkout that one stands in, else that of the installed copy."""
    installed = Path(config_path(TEACHER.config)).parents[2] / path
    in_checkout = path.is_file() and path.samefile(installed)
    return str(path) if in_checkout else shorten(installed)
