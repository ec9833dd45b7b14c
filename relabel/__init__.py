"""ReLabel: localized multi-label training (Yun et al., CVPR 2021), one concept a file.

Letters used in shapes everywhere:
    B images in a batch, K classes, k classes stored per label-map cell, h w label-map rows and columns,
    H W image rows and columns in pixels, S side of the square crop.
Boxes are (left, top, right, bottom) as fractions of the original image. Maps are [.., h, w], row 0 at the image's top.
"""
