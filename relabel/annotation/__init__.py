"""Making label maps: the teacher (a classifier), the annotator that applies it to every image, conversion between the
two forms on disk, and labels of whole images derived from the maps.
"""
