"""Strict loading of a teacher's weights.

mmengine's ``load_checkpoint`` lets keys be missing with a warning, so a wrong file gives a
random teacher in silence. Here every weight must be filled and every stored one used.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmdet.models.backbones import ResNet
from mmdet.models.backbones.resnet import Bottleneck
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from calkd_det.errors import ConfigError, TeacherError
from calkd_det.teachers.class_names import meta_class_names
from calkd_det.teachers.source import CHECKPOINT_KEY, CONFIG_KEY

_SHOWN_KEYS = 4


def load_weights(detector: nn.Module, checkpoint: str) -> tuple[str, ...] | None:
    """Fills a detector with the weights of a checkpoint, every one of them.

    Args:
        detector: A detector as mmdet built it, on the CPU. It is changed in place.
        checkpoint: A path or URL. A training checkpoint, a published one, or a state dict alone.

    Returns:
        The class names stored in the checkpoint, or None.

    Raises:
        TeacherError: The file is missing, truncated, not a checkpoint, holds more than tensors
            and plain data, lacks a weight of the detector, has one of another shape or one
            that is not finite, or has weights that the detector lacks.
    """
    content = _read(checkpoint)
    state_dict = _state_dict(content, checkpoint)
    wanted = detector.state_dict()
    try:
        missing, unexpected = detector.load_state_dict(state_dict, strict=False)
        faults = [
            (
                'of the teacher are not in the file',
                [key for key in missing if not key.endswith('num_batches_tracked')],
            ),
            ('of the file have no place in the teacher', unexpected),
        ]
    except RuntimeError as error:
        faults = [('of another shape', _reshaped(wanted, state_dict) or [str(error)])]
    if any(keys for _, keys in faults):
        listed = '; '.join(
            f'{len(keys)} weights {what}: {_few(keys)}' for what, keys in faults if keys
        )
        raise TeacherError(
            f"{CHECKPOINT_KEY}: '{checkpoint}' does not fit {CONFIG_KEY}; {listed}. "
            f'{_advice(detector, state_dict, checkpoint)}'
        )
    spoilt = [key for key, value in detector.state_dict().items() if not value.isfinite().all()]
    if spoilt:
        raise TeacherError(
            f"{CHECKPOINT_KEY}: '{checkpoint}' holds NaN or infinity in {len(spoilt)} weights: "
            f'{_few(spoilt)}. The training that wrote it diverged: take an earlier checkpoint'
        )
    return _stored_classes(content)


def _read(checkpoint: str) -> Any:
    try:
        content = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu', logger='silent')
    except FileNotFoundError as error:
        raise TeacherError(f"{CHECKPOINT_KEY}: there is no file '{checkpoint}'") from error
    # Truncated files raise RuntimeError, EOFError or UnpicklingError, URLs URLError, OSError,
    # ... by the torch version and the place where the file breaks.
    except Exception as error:
        reason = str(error).strip().split('\n')[0]
        cached = _cached(checkpoint)
        again = '' if cached is None else f". Delete '{cached}' to have it downloaded again"
        raise TeacherError(
            f"{CHECKPOINT_KEY}: cannot read '{checkpoint}': truncated, not a PyTorch checkpoint, "
            f'unreachable, or holding more than weights and plain data '
            f'({type(error).__name__}: {reason}){again}'
        ) from error
    cached = _cached(checkpoint)
    if cached is not None:
        _check_download(cached)
    return content


def _cached(checkpoint: str) -> Path | None:
    """Where mmengine keeps what it downloaded from an address; None if there is no such file."""
    if not checkpoint.startswith(('http://', 'https://')):
        return None
    path = Path(torch.hub.get_dir(), 'checkpoints', Path(urlparse(checkpoint).path).name)
    return path if path.is_file() else None


def _check_download(cached: Path) -> None:
    """Warns where a file is not the one that the zoo's naming, ``NAME-<8 of SHA-256>.pth``, says.

    mmengine looks at it neither after a download nor in its cache. No error, because a file that
    was edited after it got its name may be the right one all the same.
    """
    match = re.search(r'-([0-9a-f]{8})\.pth$', cached.name)
    if match is None:
        return
    digest = hashlib.sha256(cached.read_bytes()).hexdigest()
    if not digest.startswith(match[1]):
        print_log(
            f"{CHECKPOINT_KEY}: the SHA-256 of '{cached}' begins with {digest[:8]}, but its name "
            f'says {match[1]}: it is another version, or was damaged. Delete the file to have it '
            'downloaded again.',
            logger='current',
            level=logging.WARNING,
        )


def _state_dict(content: Any, checkpoint: str) -> OrderedDict[str, Tensor]:
    state_dict = content.get('state_dict', content) if isinstance(content, Mapping) else None
    is_weights = isinstance(state_dict, Mapping) and any(
        isinstance(value, Tensor) for value in state_dict.values()
    )
    if not is_weights:
        raise TeacherError(
            f"{CHECKPOINT_KEY}: '{checkpoint}' holds no weights: neither a 'state_dict' nor "
            'tensors by name'
        )
    # DistributedDataParallel's prefix, left by scripts that saved the wrapper.
    plain = OrderedDict((key.removeprefix('module.'), value) for key, value in state_dict.items())
    if hasattr(state_dict, '_metadata'):
        plain._metadata = state_dict._metadata
    return plain


def _stored_classes(content: Mapping) -> tuple[str, ...] | None:
    meta = content.get('meta')
    if not isinstance(meta, Mapping):
        return None
    dataset_meta = meta.get('dataset_meta')
    if isinstance(dataset_meta, (list, tuple)):  # of a ConcatDataset
        try:
            return meta_class_names(dataset_meta)
        except ConfigError:  # parts that differ tell nothing; the config may
            return None
    dataset_meta = dataset_meta if isinstance(dataset_meta, Mapping) else {}
    lower = {str(key).lower(): value for key, value in {**meta, **dataset_meta}.items()}
    classes = lower.get('classes')
    return meta_class_names(lower) if isinstance(classes, (list, tuple, str)) else None


def _reshaped(wanted: Mapping[str, Tensor], stored: Mapping[str, Any]) -> list[str]:
    return [
        f'{key} {tuple(stored[key].shape)} instead of {tuple(value.shape)}'
        for key, value in wanted.items()
        if isinstance(stored.get(key), Tensor) and stored[key].shape != value.shape
    ]


def _advice(detector: nn.Module, stored: Mapping[str, Any], checkpoint: str) -> str:
    """What to do about a file that does not fit, by what it looks like."""
    wanted = detector.state_dict()
    # mmcv's and mmdet 2's EMAHook kept its copies as buffers of the model.
    if any(key.startswith('ema_') for key in stored) and all(
        key in wanted or key.startswith('ema_') for key in stored
    ):
        part = "{k: v for k, v in d.items() if not k.startswith('ema_')}"
        return f"The keys 'ema_...' are copies that an EMA hook kept. {_rewrite(checkpoint, part)}"
    probe = next(iter(wanted))
    prefixes = [key[: -len(probe)] for key in stored if key.endswith(f'.{probe}')]
    if prefixes:
        names = ' and '.join(f"'{prefix}'" for prefix in prefixes)
        part = '{k[len(p):]: v for k, v in d.items() if k.startswith(p)}'
        return (
            f'It holds a whole detector under {names}, as distillation and semi-supervised '
            f'training save them. {_rewrite(checkpoint, part, prefixes[-1])}'
        )
    depths = _resnet_depth(stored), _resnet_depth(wanted)
    if None not in depths and depths[0] != depths[1]:
        return (
            f'The backbone in the file looks like a ResNet-{depths[0]}, the one of the config is a '
            f'ResNet-{depths[1]}: give the config that this checkpoint was trained with'
        )
    key = 'roi_head.bbox_head.fc_cls.bias'
    if key in wanted and key in stored and len(wanted[key]) != len(stored[key]):
        classes = detector.roi_head.bbox_head.num_classes
        background = len(wanted[key]) - classes
        return (
            f'The checkpoint has {len(stored[key]) - background} classes, the config {classes}: '
            f'set num_classes in the roi_head.bbox_head of {CONFIG_KEY}'
        )
    return 'Give the config that this checkpoint was trained with'


def _rewrite(checkpoint: str, part: str, prefix: str | None = None) -> str:
    file = str(_cached(checkpoint) or Path(checkpoint).expanduser())
    lines = [
        'import torch, calkd_det',
        f"c = torch.load({file!r}, map_location='cpu')",
        "d = c.get('state_dict', c)",
        *([] if prefix is None else [f'p = {prefix!r}']),
        f"content = dict(meta=c.get('meta', {{}}), state_dict={part})",
        f"torch.save(content, '{Path(file).stem}-part.pth')",
    ]
    return f'Write the part that is meant to a file of its own: {"; ".join(lines)}'


def _resnet_depth(keys: Iterable[str]) -> int | None:
    """The depth of mmdet's ResNet with these weights, by its blocks; None for anything else."""
    found = [re.match(r'backbone\.layer(\d)\.(\d+)\.conv(\d)\.', key) for key in keys]
    blocks = {(int(match[1]), int(match[2])) for match in found if match}
    convs = max((int(match[3]) for match in found if match), default=0)
    counts = tuple(sum(stage == i for stage, _ in blocks) for i in (1, 2, 3, 4))
    for depth, (block, stages) in ResNet.arch_settings.items():
        if stages == counts and (block is Bottleneck) == (convs == 3):
            return depth
    return None


def _few(keys: list[str]) -> str:
    more = len(keys) - _SHOWN_KEYS
    return ', '.join(keys[:_SHOWN_KEYS]) + (f' and {more} more' if more > 0 else '')
