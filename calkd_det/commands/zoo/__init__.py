"""Find out which of mmdet's detectors can be distilled, by which knowledge."""
