"""Collection of a detector's class logits on a data set, on the samples of distillation."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from calkd_det.calibration.targets import quality_targets
from calkd_det.errors import TeacherError
from calkd_det.measurement.fewer_classes import TeacherLabels, without_other_classes
from calkd_det.taps import Activation, HeadSamples, find_tap
from calkd_det.teachers.class_map import ClassMap

_CHUNK_BYTES = 4 << 20


class SampleStore:
    """Classifier samples of many images, with logits on disk and everything else in memory.

    The errors at the fitted T need every logit a second time, after T was fitted to all of them,
    because the confidence at T is a sum over all classes. The logits of COCO's 5,000 validation
    images take 0.8 GB with 512 RoIs an image and 81 logits a RoI, and 1.6 GB with 1,000 proposals.
    So they are written, in float32, to an unnamed temporary file, which is deleted with this
    object or process. Labels, weights, groups and qualities stay in memory, at most 24 bytes a
    sample. Samples of zero weight are left out, as in the distillation loss.

    Args:
        folder: The folder of the temporary file; None for the system's folder of temporary files.
        description: A clause that says what the samples are, for a report.

    Attributes:
        activation: That of the head.
        num_logits: Number of logits of a sample.
        class_map: From the teacher's classes to those that the data label; None where these are
            the same. Logits and labels of a softmax head are over the teacher's classes, those of
            a head of sigmoids over the labelled ones.
    """

    def __init__(self, folder: Path | None = None, description: str = '') -> None:
        self.description = description
        self.activation: Activation = 'softmax'
        self.num_logits = 0
        self.class_map: ClassMap | None = None
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it lives as long as this
        self._labels: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._groups: list[Tensor] = []
        self._qualities: list[Tensor] = []

    def append(self, samples: HeadSamples, groups: Tensor) -> None:
        """Add samples with the index of each one's image, int64, shape (N,)."""
        self.activation = samples.activation
        self.num_logits = samples.logits.shape[1]
        keep = samples.weights > 0
        logits = samples.logits[keep].detach().float().cpu().contiguous()
        self._file.seek(0, 2)
        self._file.write(logits.numpy().tobytes())
        self._labels.append(samples.labels[keep].long().cpu())
        self._weights.append(samples.weights[keep].float().cpu())
        self._groups.append(groups.to(keep.device)[keep].cpu())
        if samples.qualities is not None:
            self._qualities.append(samples.qualities[keep].float().cpu())

    def __len__(self) -> int:
        return sum(len(labels) for labels in self._labels)

    @property
    def merging_map(self) -> ClassMap | None:
        """The map that calibrated logits of :meth:`chunks` still need; None where they need none.

        It merges classes of a softmax head into the background.
        """
        return self.class_map if self.activation == 'softmax' else None

    @property
    def has_qualities(self) -> bool:
        """Whether the head is trained to predict a quality as the score of the object's class."""
        return bool(self._qualities)

    @property
    def labels(self) -> Tensor:
        """Assigned classes, int64, shape (N,)."""
        return torch.cat(self._labels) if self._labels else torch.zeros(0, dtype=torch.long)

    @property
    def weights(self) -> Tensor:
        """Weights, float32, shape (N,), > 0."""
        return torch.cat(self._weights) if self._weights else torch.zeros(0)

    @property
    def groups(self) -> Tensor:
        """Index of each sample's image, int64, shape (N,)."""
        return torch.cat(self._groups) if self._groups else torch.zeros(0, dtype=torch.long)

    def evenly_spaced_images(self, max_samples: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return all samples of evenly spaced images, about ``max_samples`` at most.

        Returns:
            Logits, labels, weights and groups as :meth:`chunks` yields them, in memory.
        """
        stride = -(-len(self) // max_samples)
        parts = []
        for chunk in self.chunks():
            keep = chunk[3] % stride == 0
            parts.append([values[keep] for values in chunk])
        logits, labels, weights, groups = (torch.cat(values) for values in zip(*parts))
        return logits, labels, weights, groups

    def chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield logits (M, K) in float32, labels, weights and groups (M,), in their order.

        Of a head that is trained to predict a quality, targets (M, K) in float32 stand in place of
        the labels: the quality for the class of the object, zero elsewhere.
        """
        labels, weights, groups = self.labels, self.weights, self.groups
        qualities = torch.cat(self._qualities) if self.has_qualities else None
        size = max(1, _CHUNK_BYTES // max(1, 4 * self.num_logits))
        for start in range(0, len(labels), size):
            rows = slice(start, start + size)
            num_bytes = 4 * self.num_logits * len(labels[rows])
            self._file.seek(4 * self.num_logits * start)
            logits = torch.frombuffer(bytearray(self._file.read(num_bytes)), dtype=torch.float32)
            targets = labels[rows]
            if qualities is not None:
                targets = quality_targets(targets, qualities[rows], self.num_logits)
            yield logits.view(-1, self.num_logits), targets, weights[rows], groups[rows]


def collect_samples(
    detector: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = False,
    class_map: ClassMap | None = None,
) -> dict[str, SampleStore]:
    """Run a detector over a data set and collect the samples of its classifiers.

    The detector computes its training loss, in eval mode and without gradients, under the tap
    that distillation uses. The samples of an image depend only on ``seed`` and the image's id.
    Their logits depend on the batch only through the padding to the largest image. Weights and
    mode of the detector and the state of torch's random number generator are restored.

    Args:
        detector: An mmdet detector with a supported head, its weights loaded, on any device.
        dataset: Annotated images of :func:`~calkd_det.measurement.held_out.read_held_out`.
        batch_size: Number of images per batch.
        num_workers: Number of processes that load images; 0 for none.
        seed: Seed of the sampling.
        folder: Folder of temporary files, see :class:`SampleStore`.
        progress: Show a progress bar.
        class_map: From the detector's classes to those that the data label; None where these are
            the same. What only the detector knows is background, as in training.

    Returns:
        Samples by name, see :meth:`calkd_det.taps.Tap.sample_sets`. Their groups are indices of
        images in the data set.

    Raises:
        ConfigError: The detector's head is not supported.
        TeacherError: A logit is not finite.
    """
    tap = find_tap(detector, 'model')
    if class_map is not None:
        dataset = TeacherLabels(dataset, class_map.columns)
    device = next(detector.parameters()).device
    stores: dict[str, SampleStore] = {}
    devices = [device] if device.type == 'cuda' else []
    with _inference(detector), torch.random.fork_rng(devices=devices):
        loader = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=pseudo_collate)
        num_done = 0
        with tqdm(total=len(dataset), unit='image', disable=not progress) as bar:
            for batch in loader:
                batch = detector.data_preprocessor(batch, training=False)
                ids = [data_sample.img_id for data_sample in batch['data_samples']]
                seeds = [_image_seed(seed, image_id) for image_id in ids]
                samples_by_name = tap.sample_sets(
                    detector, batch['inputs'], batch['data_samples'], seeds
                )
                for name, samples in samples_by_name.items():
                    _check_finite(samples, ids)
                    images = samples.locations[:, 0].long() + num_done
                    if name not in stores:
                        stores[name] = SampleStore(folder, tap.set_descriptions.get(name, name))
                        stores[name].class_map = class_map
                    if class_map is not None and samples.activation == 'sigmoid':
                        samples = without_other_classes(samples, class_map)
                    stores[name].append(samples, images)
                num_done += len(ids)
                bar.update(len(ids))
    return stores


def _check_finite(samples: HeadSamples, ids: list) -> None:
    bad = ~samples.logits.isfinite().all(dim=1)
    if bad.any():
        image = ids[int(samples.locations[bad.nonzero()[0], 0])]
        raise TeacherError(
            f'{int(bad.sum())} samples have a class logit that is not finite, the first in image '
            f'{image!r}: has the training of this checkpoint diverged?'
        )


def _image_seed(seed: int, image_id: int | str) -> int:
    digest = hashlib.sha256(f'{seed}:{image_id}'.encode()).digest()
    return int.from_bytes(digest[:4], 'big')


@contextmanager
def _inference(detector: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in detector.modules()]
    detector.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
