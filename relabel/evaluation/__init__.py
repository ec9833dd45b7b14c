"""Evaluate checkpoints: predictions of every image, results by class, the published labels and image sets of ImageNet,
your own labels, the run of `util.test_only`, and the comparison of two checkpoints. Classify images without labels.
"""
