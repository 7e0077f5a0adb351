"""Data that label only some of a teacher's classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from calkd_det.errors import ConfigError
from calkd_det.knowledge import Activation, HeadSamples
from calkd_det.measurement.coco_file import read_coco
from calkd_det.teachers.class_map import ClassMap, match_classes


class TeacherLabels(Dataset):
    """Data set with the teacher's labels in place of the student's.

    Args:
        dataset: Annotated images.
        columns: For each student class its index among the teacher's, int64, shape (C,).
    """

    def __init__(self, dataset: Dataset, columns: Tensor) -> None:
        self.dataset = dataset
        self.columns = columns.cpu()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        sample = self.dataset[index]
        objects = sample['data_samples'].gt_instances
        objects.labels = self.columns[objects.labels]
        return sample


def labelled_classes(ann_file: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """Return the teacher's classes that an annotation file has categories for, in its order.

    Args:
        ann_file: COCO annotation file.
        classes: The teacher's class names.

    Returns:
        All of ``classes``, in their order, where the file has a category for each.

    Raises:
        ConfigError: The file cannot be read, has no category of the teacher's classes, or lacks
            some of them and has others that the teacher does not know.
    """
    categories = [category['name'] for category in read_coco(ann_file)['categories']]
    missing = [name for name in classes if name not in categories]
    if not missing:
        return tuple(classes)
    known = tuple(name for name in categories if name in classes)
    unknown = [name for name in categories if name not in classes]
    if unknown:
        raise ConfigError(
            f"'{ann_file}' has no category for {len(missing)} of the detector's classes, e.g. "
            f"'{missing[0]}', but has others, e.g. '{unknown[0]}', which the detector does not "
            'know: name the categories as the detector names its classes, and leave others out'
        )
    return known


def map_to_labelled(
    labelled: Sequence[str], classes: Sequence[str], num_classes: int, activation: Activation
) -> ClassMap | None:
    """Return the map of a training on such data; None where all classes are labelled.

    Args:
        labelled: Those that the data label.
        classes: The teacher's class names.
        num_classes: The number of its classes.
        activation: That of its head.

    Raises:
        ConfigError: It has another number of classes than names, or two of one name.
    """
    if len(labelled) == len(classes):
        return None
    return match_classes(labelled, classes, len(labelled), num_classes, activation)


def student_labels(labels: Tensor, columns: Tensor | None, num_classes: int) -> Tensor:
    """Return labels over the teacher's classes as those of the student; C is the background.

    Args:
        labels: int64, shape (N,).
        columns: For each student class its index among the teacher's; None where they are the
            same.
        num_classes: The number C of the student's classes.
    """
    if columns is None:
        return labels
    highest = torch.cat([labels, columns]).max()
    table = torch.full((int(highest) + 1,), num_classes)
    table[columns] = torch.arange(num_classes)
    return table[labels]


def without_other_classes(samples: HeadSamples, class_map: ClassMap) -> HeadSamples:
    """Leave out the logits of the classes that only the teacher has, of a sigmoid head.

    There a calibrator acts on each class by itself, so that it makes no difference whether it comes
    before the map or after it.
    """
    columns = class_map.columns.cpu()
    labels = student_labels(samples.labels.cpu(), columns, len(columns))
    logits = samples.logits[:, columns.to(samples.logits.device)]
    return replace(samples, logits=logits, labels=labels.to(samples.labels.device))
