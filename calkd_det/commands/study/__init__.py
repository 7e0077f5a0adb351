"""Studies: grids of teachers, temperatures, losses and seeds, run, kept and reported."""
