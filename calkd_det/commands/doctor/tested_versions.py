"""Versions that were tested together. A test checks that they are those of ``make env``."""

TESTED_VERSIONS = {
    'python': '3.11',
    'torch': '2.13.0',
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmdet': '3.3.0',
    'numpy': '2.4.6',
}
