_base_ = './calkd_gfl_r101-r50_fpn_1x_coco.py'

model = dict(
    distillation=dict(
        _delete_=True,
        cls=dict(type='BinaryKDLoss', tau=1.0, loss_weight=1.0),
        bbox=dict(type='LDLoss', tau=10.0, loss_weight=0.25),
        feat=dict(type='PKDLoss', loss_weight=6.0, num_levels=5),
    )
)
