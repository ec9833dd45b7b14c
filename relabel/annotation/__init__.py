"""Make label maps: a classifier as teacher, the annotator that applies it to every image, conversion between the two
forms on disk, and labels of whole images made from the maps."""
