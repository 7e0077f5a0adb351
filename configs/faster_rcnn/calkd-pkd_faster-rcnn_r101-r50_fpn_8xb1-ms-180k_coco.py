_base_ = './calkd_faster-rcnn_r101-r50_fpn_8xb1-ms-180k_coco.py'

model = dict(
    distillation=dict(
        _delete_=True,
        cls=dict(type='KDLoss', tau=1.0, loss_weight=1.0),
        feat=dict(type='PKDLoss', loss_weight=6.0),
    )
)
