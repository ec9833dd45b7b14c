"""Label maps on disk: the folder of .pt files as released in 2021, the packed store with a checksum for each map, the
manifest that both may have, and one interface to read either."""
