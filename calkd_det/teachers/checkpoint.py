"""Load a teacher's weights strictly.

mmengine's ``load_checkpoint`` only warns of missing keys, so a wrong file gives a teacher with
random weights. Here every weight of the teacher must be in the file, and every weight of the file
must belong to the teacher.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.models.backbones import ResNet
from mmdet.models.backbones.resnet import Bottleneck
from mmengine.logging import print_log
from torch import Tensor, nn

from calkd_det.errors import ConfigError, TeacherError
from calkd_det.teachers.checkpoint_file import cached_download, read_checkpoint
from calkd_det.teachers.class_names import meta_class_names
from calkd_det.teachers.source import CHECKPOINT_KEY, CONFIG_KEY

# Keys under which training scripts keep the weights, in order of preference.
_USUAL_KEYS = (
    'state_dict',
    'model',
    'model_state_dict',
    'model_state',
    'net',
    'network',
    'weights',
    'params',
    'module',
    'ema_state_dict',
    'state_dict_ema',
    'model_ema',
    'ema',
    'teacher',
    'student',
)
_DEPTH = 2  # at most so many keys within each other, as in ['ema']['module']
_SHOWN_KEYS = 4
# In its first training step a DDQ makes branches of its head those of its decoder, too, so that
# its checkpoints hold them twice.
_COPIES = {'decoder.aux_reg_branches.': 'bbox_head.aux_reg_branches.'}


def load_weights(detector: nn.Module, checkpoint: str) -> tuple[str, ...] | None:
    """Load every weight of a detector from a checkpoint.

    Args:
        detector: A detector as mmdet built it, on the CPU. It is changed in place.
        checkpoint: A path or URL. A training checkpoint, a published one, or a state dict, alone
            or under one of the keys that training scripts use.

    Returns:
        The class names stored in the checkpoint, or None.

    Raises:
        TeacherError: The file is missing, truncated, not a checkpoint, holds more than tensors
            and plain data, lacks a weight of the detector, has one of another shape or one
            that is not finite, or has weights that the detector lacks.
    """
    content = read_checkpoint(checkpoint)
    keys, state_dict = _find_weights(content, checkpoint)
    wanted = detector.state_dict()
    try:
        missing, unexpected = detector.load_state_dict(state_dict, strict=False)
        faults = [
            (
                'of the teacher are not in the file',
                [key for key in missing if not key.endswith('num_batches_tracked')],
            ),
            (
                'of the file have no place in the teacher',
                [key for key in unexpected if not _is_copy(key, state_dict)],
            ),
        ]
    except RuntimeError as error:
        faults = [('of another shape', _list_reshaped(wanted, state_dict) or [str(error)])]
    if any(keys for _, keys in faults):
        listed = '; '.join(
            f'{len(keys)} weights {what}: {_first_of(keys)}' for what, keys in faults if keys
        )
        raise TeacherError(
            f"{CHECKPOINT_KEY}: '{checkpoint}' does not fit {CONFIG_KEY}; {listed}. "
            f'{_advice(detector, state_dict, checkpoint, keys)}'
        )
    spoilt = [key for key, value in detector.state_dict().items() if not value.isfinite().all()]
    if spoilt:
        raise TeacherError(
            f"{CHECKPOINT_KEY}: '{checkpoint}' holds NaN or infinity in {len(spoilt)} weights: "
            f'{_first_of(spoilt)}. The training that wrote it diverged: take an earlier checkpoint'
        )
    return _stored_classes(content)


def _is_copy(key: str, state_dict: Mapping[str, Tensor]) -> bool:
    """Return whether a checkpoint holds the same weight under another name, too."""
    return any(
        key.startswith(copy) and original + key.removeprefix(copy) in state_dict
        for copy, original in _COPIES.items()
    )


def _find_weights(content: Any, checkpoint: str) -> tuple[tuple[str, ...], OrderedDict]:
    """Return the keys under which a file holds its weights, outermost first, and the weights."""
    found = _state_dicts(content)
    if not found:
        held = (
            f'the keys {sorted(map(str, content))}'
            if isinstance(content, Mapping)
            else f'a {type(content).__name__}'
        )
        raise TeacherError(
            f"{CHECKPOINT_KEY}: '{checkpoint}' holds no weights: neither tensors by name nor "
            f"'state_dict', 'model' or the like, but {held}"
        )
    keys = next(iter(found))
    if keys not in ((), ('state_dict',)):
        others = [_key_path(other) for other in found if other != keys]
        print_log(
            f"{CHECKPOINT_KEY}: the weights under {_key_path(keys)} of '{checkpoint}' are used"
            f'{", not those under " + ", ".join(others) if others else ""}.',
            logger='current',
            level=logging.WARNING if others else logging.INFO,
        )
    weights = found[keys]
    # DistributedDataParallel's prefix, left by scripts that saved the wrapper.
    plain = OrderedDict((key.removeprefix('module.'), value) for key, value in weights.items())
    if hasattr(weights, '_metadata'):
        plain._metadata = weights._metadata
    return keys, plain


def _state_dicts(
    content: Any, keys: tuple[str, ...] = ()
) -> dict[tuple[str, ...], Mapping[str, Any]]:
    """Return each mapping of names to tensors in a file, by the keys under which it is stored."""
    if not isinstance(content, Mapping):
        return {}
    nested: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for key in _USUAL_KEYS if len(keys) < _DEPTH else ():
        nested.update(_state_dicts(content.get(key), (*keys, key)))
    # A tensor beside nested weights is a counter or the like.
    is_weights = (
        not nested
        and all(isinstance(key, str) for key in content)
        and any(isinstance(value, Tensor) for value in content.values())
    )
    return {keys: content} if is_weights else nested


def _key_path(keys: Sequence[str]) -> str:
    return ''.join(f'[{key!r}]' for key in keys)


def _stored_classes(content: Mapping) -> tuple[str, ...] | None:
    meta = content.get('meta')
    if not isinstance(meta, Mapping):
        return None
    dataset_meta = meta.get('dataset_meta')
    if isinstance(dataset_meta, (list, tuple)):  # of a ConcatDataset
        try:
            return meta_class_names(dataset_meta)
        except ConfigError:  # the names of the parts differ, but the config may have them
            return None
    dataset_meta = dataset_meta if isinstance(dataset_meta, Mapping) else {}
    lower = {str(key).lower(): value for key, value in {**meta, **dataset_meta}.items()}
    classes = lower.get('classes')
    return meta_class_names(lower) if isinstance(classes, (list, tuple, str)) else None


def _list_reshaped(wanted: Mapping[str, Tensor], stored: Mapping[str, Any]) -> list[str]:
    return [
        f'{key} {tuple(stored[key].shape)} instead of {tuple(value.shape)}'
        for key, value in wanted.items()
        if isinstance(stored.get(key), Tensor) and stored[key].shape != value.shape
    ]


def _advice(
    detector: nn.Module, stored: Mapping[str, Any], checkpoint: str, keys: tuple[str, ...]
) -> str:
    """Return advice on a file that does not fit, drawn from its keys and shapes."""
    wanted = detector.state_dict()
    # mmcv's and mmdet 2's EMAHook kept its copies as buffers of the model.
    if any(key.startswith('ema_') for key in stored) and all(
        key in wanted or key.startswith('ema_') for key in stored
    ):
        part = "{k: v for k, v in d.items() if not k.startswith('ema_')}"
        recipe = _advise_extraction(checkpoint, keys, part)
        return f"The keys 'ema_...' are copies that an EMA hook kept. {recipe}"
    probe = next(iter(wanted))
    prefixes = [key[: -len(probe)] for key in stored if key.endswith(f'.{probe}')]
    if prefixes:
        names = ' and '.join(f"'{prefix}'" for prefix in prefixes)
        part = '{k[len(p):]: v for k, v in d.items() if k.startswith(p)}'
        return (
            f'It holds a whole detector under {names}, as distillation and semi-supervised '
            f'training save them. {_advise_extraction(checkpoint, keys, part, prefixes[-1])}'
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
    return (
        'Give the config that this checkpoint was trained with. A config that inherits another '
        "one keeps the base's config or checkpoint where it does not give its own"
    )


def _advise_extraction(
    checkpoint: str, keys: tuple[str, ...], part: str, prefix: str | None = None
) -> str:
    file = str(cached_download(checkpoint) or Path(checkpoint).expanduser())
    lines = [
        'import torch',
        'from calkd_det.safe_loading import load_checkpoint',
        f'c = load_checkpoint({file!r})',
        f'd = c{_key_path(keys)}',
        *([] if prefix is None else [f'p = {prefix!r}']),
        f"content = dict(meta=c.get('meta', {{}}), state_dict={part})",
        f"torch.save(content, '{Path(file).stem}-part.pth')",
    ]
    return f'Write the part that is meant to a file of its own: {"; ".join(lines)}'


def _resnet_depth(keys: Iterable[str]) -> int | None:
    """Return the depth of mmdet's ResNet with these weights; None for any other backbone."""
    found = [re.match(r'backbone\.layer(\d)\.(\d+)\.conv(\d)\.', key) for key in keys]
    blocks = {(int(match[1]), int(match[2])) for match in found if match}
    convs = max((int(match[3]) for match in found if match), default=0)
    counts = tuple(sum(stage == i for stage, _ in blocks) for i in (1, 2, 3, 4))
    for depth, (block, stages) in ResNet.arch_settings.items():
        if stages == counts and (block is Bottleneck) == (convs == 3):
            return depth
    return None


def _first_of(keys: list[str]) -> str:
    more = len(keys) - _SHOWN_KEYS
    return ', '.join(keys[:_SHOWN_KEYS]) + (f' and {more} more' if more > 0 else '')
