_base_ = './calkd_atss_r101-r50_fpn_1x_coco.py'

model = dict(
    distillation=dict(
        _delete_=True,
        cls=dict(type='BinaryKDLoss', tau=1.0, loss_weight=1.0),
        feat=dict(type='PKDLoss', loss_weight=6.0, num_levels=5),
    )
)
