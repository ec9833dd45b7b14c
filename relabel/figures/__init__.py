"""Draw: label maps, in pictures and in a page to look through; training curves, the axes, two checkpoints compared."""
