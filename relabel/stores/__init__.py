"""Label maps on disk: the folder of .pt files as released in 2021, the packed store with a checksum per map, the
manifest of either, and one interface to read both.
"""
