"""A detector on a data set: held-out data, collected samples, analysis, report."""
