_base_ = './calkd_fcos_r101-r50-caffe_fpn_gn-head_1x_coco.py'

model = dict(
    distillation=dict(
        _delete_=True,
        cls=dict(type='BinaryKDLoss', tau=1.0, loss_weight=1.0),
        feat=dict(type='PKDLoss', loss_weight=10.0),
    )
)
