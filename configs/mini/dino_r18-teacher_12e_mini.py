_base_ = ['../_base_/dino_r18.py', '../_base_/mini.py']

# The backbone starts from random weights too, so its learning rate is higher, not lower as in mmdet.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=0.0005, weight_decay=0.0001),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=4.0))),
)
