"""What the tests of all detectors are parametrised over: one case for each pair tried."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import helpers
import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from calkd_det.detectors import DistillationMixin


@dataclass(frozen=True)
class Captured:
    """What the own modules of two plain detectors saw of one classifier in a step.

    Attributes:
        student: The student's class logits, shape (N, K).
        teacher: The teacher's for the same samples, not calibrated, shape (N, K').
        labels: Assigned classes, int64, shape (N,).
        weights: Of the labels, shape (N,).
        name: Prefix of the classifier's losses, '' where there is but one.
        factor: The head's own factor on this classifier's losses.
        avg_factor: What the head divided its own classification loss by; None for the number of
            samples that the loss counts.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor
    weights: Tensor
    name: str = ''
    factor: float = 1.0
    avg_factor: Tensor | float | None = None


GRADIENT_DESCENT = partial(torch.optim.SGD, lr=0.01)


def run_loss(detector: nn.Module, inputs: Tensor, data_samples: list) -> None:
    """Compute the loss of the plain detector."""
    plain_class(detector).loss(detector, inputs, data_samples)


@dataclass(frozen=True)
class Head:
    """How the tests look into the heads of one kind, by other means than a tap.

    Attributes:
        classifiers: The layers of a detector whose outputs are class logits.
        capture: Given a case, its plain student in train mode and its plain teacher in eval
            mode, computes the student's losses of ``case.batch()``, has the teacher answer, and
            returns what was seen for each classifier. The seed is set before it is called.
        not_asked: A pattern of the names, within a detector, of modules that a teacher must not
            run.
        take_samples_away: Makes a student sample nothing of a batch without objects; None where
            its samples are whatever the images hold, or mmdet's own loss needs some.
        run: Runs a plain detector on inputs and data samples.
        not_counted: A pattern of the names of modules whose runs are not compared with those of a
            prediction: mmdet reads their weights without calling them, or predicts by fewer layers.
        optimizer: Makes of parameters an optimizer whose steps lower the loss.
        tolerance: Relative error of losses in float32.
    """

    classifiers: Callable[[nn.Module], list[nn.Module]]
    capture: Callable[[Case, nn.Module, nn.Module], list[Captured]]
    not_asked: str
    take_samples_away: Callable[[nn.Module], None] | None = None
    run: Callable[[nn.Module, Tensor, list], Any] = run_loss
    not_counted: str = '(?!)'
    optimizer: Callable[..., torch.optim.Optimizer] = GRADIENT_DESCENT
    tolerance: float = 1e-5


def plain_class(detector: nn.Module) -> type[nn.Module]:
    """The mmdet class of a detector, distilled or not."""
    is_distilled = isinstance(detector, DistillationMixin)
    return type(detector).__mro__[2] if is_distilled else type(detector)


@dataclass(frozen=True)
class Case:
    """A student and its teacher, every size turned down.

    Attributes:
        name: For the test's id and the table in the docs, e.g. ``Cascade R-CNN``.
        student: The plain student's ``model`` dict.
        teacher: The teacher's ``model`` dict, wider than the student's.
        head: How the tests look into both.
        distillation: Config of the loss.
        teacher_options: Further keys of ``model.teacher``.
        batch_options: For ``helpers.batch``.
    """

    name: str
    student: ConfigDict
    teacher: ConfigDict
    head: Head
    distillation: dict[str, Any] = field(default_factory=lambda: dict(type='KDLoss'))
    teacher_options: dict[str, Any] = field(default_factory=dict)
    batch_options: dict[str, Any] = field(default_factory=dict)

    @property
    def detector(self) -> str:
        """Name of the distilled detector's class."""
        return f'CalKD{self.student.type}'

    @torch.no_grad()
    def sharpen(self, detector: nn.Module, seed: int, in_training: bool = False) -> None:
        """Give class logits a spread over the batch: mmdet's initial ones are alike.

        ``in_training`` gives it to the logits of training mode, which differ by BatchNorm.
        """
        generator = torch.Generator().manual_seed(seed)
        layers = self.head.classifiers(detector)
        seen: list[list[Tensor]] = [[] for _ in layers]
        handles = []
        for layer, outputs in zip(layers, seen):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
            layer.bias.zero_()
            handles.append(
                layer.register_forward_hook(lambda m, args, output, to=outputs: to.append(output))
            )
        training = detector.training
        data = detector.data_preprocessor(self.batch(), True)
        detector.train(in_training)
        self.head.run(detector, data['inputs'], data['data_samples'])
        detector.train(training)
        for handle, layer, outputs in zip(handles, layers, seen):
            handle.remove()
            dim = -1 if isinstance(layer, nn.Linear) else 1
            logits = torch.cat([out.movedim(dim, -1).flatten(0, -2) for out in outputs])
            scale = 3 / logits.std(dim=0).mean()
            layer.weight.mul_(scale)
            layer.bias.copy_(-scale * logits.mean(dim=0))

    @torch.no_grad()
    def spread_boxes(self, detector: nn.Module, seed: int, in_training: bool = False) -> None:
        """Give predicted boxes a spread over the batch: mmdet's initial ones are alike.

        Sides of boxes are positive, as a trained detector's: the IoU of boxes without an area is
        not smooth.
        """
        generator = torch.Generator().manual_seed(seed)
        outputs: dict[nn.Module, list[Tensor]] = {}
        handles = []
        for name, module in detector.named_modules():
            predicts = re.search(r'(_reg|centerness)(\.\d+)?$', name)
            if predicts and isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
                module.bias.zero_()
                outputs[module] = []
                handles.append(
                    module.register_forward_hook(lambda m, args, output: outputs[m].append(output))
                )
        training = detector.training
        data = detector.data_preprocessor(self.batch(), True)
        detector.train(in_training)
        self.head.run(detector, data['inputs'], data['data_samples'])
        detector.train(training)
        for handle in handles:
            handle.remove()
        for module, values in outputs.items():
            if values:
                module.weight.mul_(0.3 / torch.cat([value.flatten() for value in values]).std())
            module.bias.fill_(1)

    def batch(self, **changes: Any) -> dict[str, list]:
        """The case's batch."""
        return helpers.batch(**{**self.batch_options, **changes})
