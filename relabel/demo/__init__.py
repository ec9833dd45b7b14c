"""The method on a laptop: scenes of small images, and the paper's comparison trained on them."""
