"""Measurement of a detector's calibration on a data set: data, samples, analysis and report."""
