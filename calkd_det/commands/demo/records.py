"""What the demo notes beside a run, so that a later call knows what is done and what changed."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from calkd_det.commands.demo.plan import (
    DEFAULT_DATA,
    DEFAULT_WORK_DIR,
    TEACHER,
    Evaluation,
    Plan,
    Training,
)
from calkd_det.commands.demo.runs import newest_metrics
from calkd_det.config import config_path
from calkd_det.datasets.mini import MANIFEST

RECORD = 'demo_record.json'


def fingerprint(plan: Plan, training: Training) -> str:
    """Returns a hash of all that decides a training: its config, the data, and its teacher's."""
    cfg = copy.deepcopy(_read_config(training.config))
    # Where the files lie changes nothing; what is in them does, and is added below.
    options = replace(plan, data=DEFAULT_DATA, work_dir=DEFAULT_WORK_DIR).train_options(training)
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    cfg.merge_from_dict(parser.parse_args(['--cfg-options', *options]).cfg_options)
    content = cfg.to_dict()
    if training.distilled:
        content['model']['teacher']['config'] = fingerprint(plan, TEACHER)
    content['data'] = json.loads((plan.data / MANIFEST).read_text('utf-8'))['annotations_sha256']
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def read_record(folder: Path) -> dict[str, Any] | None:
    """Returns what the demo noted in a run's folder, or None."""
    try:
        return json.loads((folder / RECORD).read_text('utf-8'))
    except (OSError, ValueError):
        return None


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Notes ``record`` in a run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps(record, indent=2) + '\n', 'utf-8')


def last_checkpoint(folder: Path) -> Path | None:
    """Returns the checkpoint that an interrupted or finished training left, or None."""
    try:
        # Only the name: mmengine writes an absolute path, and the folder may have moved.
        name = Path((folder / 'last_checkpoint').read_text('utf-8').strip()).name
    except OSError:
        return None
    return folder / name if name and (folder / name).is_file() else None


def move_aside(folder: Path) -> Path:
    """Renames a folder by the time, so that what was trained there is kept."""
    target = folder.with_name(f'{folder.name}.{datetime.now():%Y%m%d-%H%M%S}')
    folder.rename(target)
    return target


def is_tested(plan: Plan, evaluation: Evaluation) -> bool:
    """Whether a test's results are there and younger than the checkpoint."""
    files = [newest_metrics(plan.test_folder(evaluation)), plan.predictions(evaluation)]
    checkpoint = plan.checkpoint(evaluation.training)
    return all(file is not None and is_newer(file, checkpoint) for file in files)


def is_newer(file: Path, than: Path) -> bool:
    """Whether both files are there, and the first is the younger."""
    return file.is_file() and than.is_file() and file.stat().st_mtime_ns > than.stat().st_mtime_ns


@cache
def _read_config(name: str) -> Config:
    return Config.fromfile(config_path(name))
