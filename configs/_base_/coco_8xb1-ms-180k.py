# The published protocol, based on mmdet's alignment with Detectron2 (pillow, multi-scale).
_base_ = 'mmdet::common/ms-90k_coco.py'

# Plain students import it too, because it lets torch>=2.6 load mmengine's checkpoints.
custom_imports = dict(imports=['calkd_det'], allow_failed_imports=False)

# 8 GPUs x 1 image
train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(enable=False, base_batch_size=8)
optim_wrapper = dict(optimizer=dict(lr=0.01))

max_iter = 180000
train_cfg = dict(max_iters=max_iter, val_interval=15000)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(
        type='MultiStepLR',
        begin=0,
        end=max_iter,
        by_epoch=False,
        milestones=[120000, 160000],
        gamma=0.1,
    ),
]

default_hooks = dict(checkpoint=dict(interval=15000, max_keep_ckpts=3, save_best='coco/bbox_mAP'))
