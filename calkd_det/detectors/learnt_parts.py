"""The learnt parts of losses: trained with the student, and in no state dict of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

from mmengine._strategy import DeepSpeedStrategy
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from calkd_det.detectors.runner_data import calling_runner, unwrapped_model
from calkd_det.errors import ConfigError

ATTRIBUTE = 'learnt_parts'  # of the detector
CHECKPOINT_KEY = 'calkd_distillation'


class LearntParts(nn.ModuleDict):
    """The losses of a detector that have parameters or buffers, as a child of the detector.

    So they are moved, cast, optimised, clipped and averaged over processes as all of the detector
    is. The detector's state dict has nothing of them, and loads strictly without them. Their own
    is :meth:`own_state_dict`.

    Args:
        losses: Losses by the name that they are logged under.

    Raises:
        ConfigError: A name has a dot.
    """

    def __init__(self, losses: Mapping[str, nn.Module]) -> None:
        dotted = [name for name in losses if '.' in name]
        if dotted:
            raise ConfigError(
                f'model.distillation: the name of a loss with learnt parts must have no dot, but '
                f'one is {dotted[0].removeprefix("loss_kd_")!r}'
            )
        super().__init__(losses)
        self.register_load_state_dict_post_hook(_drop_missing_keys)

    def state_dict(
        self, *args: Any, destination: Any = None, prefix: str = '', keep_vars: bool = False
    ) -> dict[str, Tensor]:
        """Return the state dict of the detector as it is, without anything of these parts."""
        return {} if destination is None else destination

    def zeros(self) -> dict[str, Tensor]:
        """Return a zero for each loss, with a graph of all its parameters.

        Distributed training waits for a gradient of each parameter in each step.
        """
        return {
            name: sum(0 * parameter.sum() for parameter in loss.parameters())
            for name, loss in self.items()
        }

    def own_state_dict(self) -> dict[str, Any]:
        """Return the state dict of these parts."""
        return super().state_dict()


def _drop_missing_keys(parts: LearntParts, incompatible: Any) -> None:
    """Take the parts' own keys from those that a detector misses in a state dict that it loads."""
    own = tuple(f'{ATTRIBUTE}.{name}' for name in parts.own_state_dict())
    missing = incompatible.missing_keys
    missing[:] = [key for key in missing if not key.endswith(own)]


def find_learnt_parts(losses: Mapping[str, nn.Module]) -> LearntParts | None:
    """Return the parts of the losses that are switched on; None where no loss has any."""
    learnt = {
        name: loss
        for name, loss in losses.items()
        if loss.loss_weight != 0 and any(True for _ in chain(loss.parameters(), loss.buffers()))
    }
    return LearntParts(learnt) if learnt else None


@contextmanager
def without_learnt_parts(detector: nn.Module) -> Iterator[None]:
    """Take the learnt parts out of a detector inside a block, e.g. while it is initialised.

    An ``init_cfg`` of the detector initialises all its layers, and would draw further random
    numbers for those of the parts.
    """
    parts = getattr(detector, ATTRIBUTE)
    setattr(detector, ATTRIBUTE, None)
    try:
        yield
    finally:
        setattr(detector, ATTRIBUTE, parts)


class LearntPartsHook(Hook):
    """Hook that saves learnt parts in the checkpoint, and loads them where a run is resumed.

    They stand under ``calkd_distillation`` beside ``state_dict``, which tools for checkpoints do
    not read. A run that only starts from the weights of a checkpoint, ``load_from``, begins with
    new parts, because its teacher and its losses may be others.
    """

    priority = 'NORMAL'

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        parts = _parts_of(runner)
        if parts is not None:
            checkpoint[CHECKPOINT_KEY] = parts.own_state_dict()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Load the parts of a run that is resumed.

        Raises:
            ConfigError: The run had other learnt parts than those of the config.
        """
        if not runner._resume:
            return
        parts, stored = _parts_of(runner), checkpoint.get(CHECKPOINT_KEY)
        if parts is None and stored is None:
            return
        advice = (
            'The state of its optimizer counts them: resume with the model.distillation of the '
            'run, or start anew from its weights with load_from and without resume'
        )
        if parts is None:
            names = sorted({key.split('.')[0] for key in stored})
            raise ConfigError(
                f'model.distillation: the run that is resumed had learnt parts of '
                f'{", ".join(names)}, but no loss of the config has any. {advice}'
            )
        if stored is None:
            raise ConfigError(
                f'model.distillation: {", ".join(parts)} has learnt parts, but the run that is '
                f'resumed had none. {advice}'
            )
        try:
            parts.load_state_dict(stored)
        except RuntimeError as error:
            raise ConfigError(
                f'model.distillation: the run that is resumed had other learnt parts than those of '
                f'{", ".join(parts)} ({" ".join(str(error).split())}). {advice}'
            ) from error


def register_learnt_parts_hook(parts: LearntParts | None) -> None:
    """Add a :class:`LearntPartsHook` to the calling Runner, if there is one without it.

    Raises:
        ConfigError: There are learnt parts, and mmengine's ``DeepSpeedStrategy`` is to train them.
            It saves and loads checkpoints without calling any hook.
    """
    runner = calling_runner()
    if runner is None:
        return
    if parts is not None and isinstance(getattr(runner, 'strategy', None), DeepSpeedStrategy):
        raise ConfigError(
            f'model.distillation: {", ".join(parts)} has learnt parts, which DeepSpeedStrategy '
            'does not save, so that a resumed run would begin with new ones. Train with another '
            'strategy, or take losses without learnt parts'
        )
    if not any(isinstance(hook, LearntPartsHook) for hook in runner.hooks):
        runner.register_hook(LearntPartsHook())


def _parts_of(runner: Runner) -> LearntParts | None:
    model = unwrapped_model(runner)
    return getattr(model, ATTRIBUTE, None)
