_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py', '../_base_/coco_8xb1-ms-180k.py']
