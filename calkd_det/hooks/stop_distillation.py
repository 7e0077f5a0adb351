"""Hook that ends distillation before the training ends."""

from __future__ import annotations

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner

from calkd_det.detectors.runner_data import unwrapped_model
from calkd_det.errors import ConfigError
from calkd_det.hooks.distilled_model import distilled_model


@HOOKS.register_module()
class StopDistillationHook(Hook):
    """Hook that trains the student alone from an epoch on.

    From then on a step is the plain detector's, and the teacher does not run, also in a run that is
    resumed. RTMDet's recipe in MMRazor stops 20 epochs before the end, when the strong augmentation
    ends.

    Args:
        stop_epoch: The first epoch without distillation, counted from 0, as the ``switch_epoch`` of
            mmdet's ``PipelineSwitchHook``.

    Raises:
        ConfigError: ``stop_epoch`` is not an integer >= 0; or, when training starts, the model is
            not a distilled detector, or the training has no such epoch.
    """

    def __init__(self, stop_epoch: int) -> None:
        if isinstance(stop_epoch, bool) or not isinstance(stop_epoch, int) or stop_epoch < 0:
            raise ConfigError(
                'custom_hooks: StopDistillationHook.stop_epoch must be an integer >= 0, but is '
                f'{stop_epoch!r}'
            )
        self.stop_epoch = stop_epoch

    def before_train(self, runner: Runner) -> None:
        distilled_model(runner, self)
        if self.stop_epoch >= runner.max_epochs:
            raise ConfigError(
                f'custom_hooks: StopDistillationHook.stop_epoch is {self.stop_epoch}, but the '
                f'epochs of this training are 0 to {runner.max_epochs - 1}, so that distillation '
                'would not stop. A loop that counts iterations has one epoch: it needs '
                "train_cfg=dict(type='EpochBasedTrainLoop', ...)"
            )

    def before_train_epoch(self, runner: Runner) -> None:
        model = unwrapped_model(runner)
        stopped = runner.epoch >= self.stop_epoch
        if stopped and model.distilling:
            runner.logger.info(
                f'Distillation stops: epoch {runner.epoch + 1} trains the student alone.'
            )
        model.stopped = stopped
