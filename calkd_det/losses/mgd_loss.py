"""Masked generative distillation of feature maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmdet.registry import MODELS
from mmengine.dist import get_dist_info
from torch import Tensor, nn

from calkd_det.errors import ConfigError
from calkd_det.losses.learnt import LearntFeatureLoss, alignment
from calkd_det.losses.levels import iterate_levels


def mgd_loss(
    generated: Sequence[Tensor],
    teacher: Sequence[Tensor],
    valid: Sequence[Tensor] | None = None,
) -> Tensor:
    r"""Compute the squared distance of generated maps to the teacher's, summed over levels.

    .. math::
        \sum_{\text{levels}} \frac{1}{N} \sum_{n=1}^{N} \sum_{d, p}
        \left(G(a(s) \odot m) - t\right)_{ndp}^2

    The maps :math:`a(s)` of the student, with the teacher's number of channels D, lose the places p
    that the random mask m drops. The generator G, a 3 x 3 convolution, ReLU and a 3 x 3
    convolution, restores the teacher's maps from the others. (Yang et al., `Masked Generative
    Distillation <https://arxiv.org/abs/2205.01529>`_, section 3.2.) It is a sum over channels and
    places, so it grows with the size of the images, as in the authors' code.

    Args:
        generated: The maps :math:`G(a(s) \odot m)` by level, float, each of shape (N, D, h, w).
        teacher: As many, of the same shapes. Gradients do not flow into them.
        valid: For each level which places count, bool, shape (N, 1, h, w). Others, such as padding,
            are left out. None where all count.

    Returns:
        A float32 scalar.

    Example:
        >>> import torch
        >>> maps = [torch.zeros(2, 8, 4, 4)]
        >>> mgd_loss(maps, [maps[0] + 1])
        tensor(128.)
    """
    terms = []
    for own, other, mask in iterate_levels(generated, teacher, valid):
        squares = (own - other).square()
        if mask is not None:
            squares = squares * mask
        terms.append(squares.sum() / len(other))
    return torch.stack(terms).sum()


class MGDLevel(nn.Module):
    """The learnt parts of a level: the convolution between the widths, and the generator."""

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.align = alignment(student_channels, teacher_channels)
        self.generator = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(teacher_channels, teacher_channels, kernel_size=3, padding=1),
        )

    def forward(self, student: Tensor, kept: Tensor) -> Tensor:
        """Generate the teacher's maps from a part of the student's.

        Args:
            student: Float, shape (N, D, h, w).
            kept: The places that the generator is shown, bool, shape (N, 1, h, w).

        Returns:
            Float, shape (N, D', h, w).
        """
        return self.generator(self.align(student) * kept)


@MODELS.register_module()
class MGDLoss(LearntFeatureLoss):
    """:func:`mgd_loss` as a registered module, with a generator for each level.

    The generator is trained with the student and is no part of it. A student that equals its
    teacher has no loss of zero, since the generator has to restore what the mask drops.

    The masks are drawn by a generator of random numbers of their own, from the run's seed, the
    number of the step and the rank. So anchors and RoIs are sampled as without this loss, and a
    resumed run draws the masks that the uninterrupted one would.

    The defaults are the published values for Faster R-CNN. For RetinaNet and other one-stage
    detectors the authors took ``loss_weight=2e-5, mask_ratio=0.65, num_levels=5``. They clip the
    norm of the gradients at 35.

    Args:
        loss_weight: Factor of the loss, >= 0, alpha in the paper. Zero switches it off.
        mask_ratio: The share of places that the generator is not shown, in [0, 1), lambda in the
            paper.
        num_levels: The number of levels, from the finest, that are compared.
        student_channels: The number of channels of the student's feature maps. Where it is not the
            teacher's, a 1 x 1 convolution for each level is learnt as well.
        teacher_channels: The number of channels of the teacher's feature maps.

    Raises:
        ConfigError: A number is not finite or out of its range.
    """

    def __init__(
        self,
        loss_weight: float = 5e-7,
        mask_ratio: float = 0.45,
        num_levels: int = 4,
        student_channels: int = 256,
        teacher_channels: int = 256,
    ) -> None:
        super().__init__(
            loss_weight,
            num_levels=num_levels,
            student_channels=student_channels,
            teacher_channels=teacher_channels,
            non_negative=dict(mask_ratio=mask_ratio),
        )
        if self.mask_ratio >= 1:
            raise ConfigError(f'distillation.mask_ratio must be below 1, but is {mask_ratio}')
        self._seed = torch.initial_seed()
        self._steps = 0

    def build_level(self) -> nn.Module:
        return MGDLevel(self.student_channels, self.teacher_channels)

    def get_extra_state(self) -> dict[str, int]:
        return dict(seed=self._seed, steps=self._steps)

    def set_extra_state(self, state: Mapping[str, int]) -> None:
        self._seed, self._steps = state['seed'], state['steps']

    def compute(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        valid: Sequence[Tensor] | None,
        boxes: Sequence[Tensor],
    ) -> Tensor:
        generated = []
        for level, (maps, kept) in enumerate(zip(student, self.draw_masks(student))):
            if valid is not None:
                kept = kept & valid[level]
            generated.append(self.call_level(level, maps.float(), kept))
        return mgd_loss(generated, teacher, valid)

    def draw_masks(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Draw the places that the generators are shown, for the next step.

        Args:
            maps: Feature maps by level, each of shape (N, D, h, w).

        Returns:
            A bool tensor of shape (N, 1, h, w) for each level.
        """
        device = maps[0].device
        rank, ranks = get_dist_info()
        generator = torch.Generator(device)
        generator.manual_seed((self._seed + self._steps * ranks + rank) % 2**63)
        self._steps += 1
        return [
            torch.rand(len(x), 1, *x.shape[2:], generator=generator, device=device)
            >= self.mask_ratio
            for x in maps
        ]
