_base_ = ['../_base_/dino_r18.py', '../_base_/mini.py']

# The backbone starts from random weights too, so its learning rate is higher, not lower as in mmdet.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=0.0005, weight_decay=0.0001),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=4.0))),
)

# A transformer from random weights needs more steps than the other mini detectors.
max_epochs = 24
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=100),
    dict(
        type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[16, 22], gamma=0.1
    ),
]
