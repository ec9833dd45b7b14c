"""Draw: label maps with crops and targets, training curves, the axes, two checkpoints compared."""
