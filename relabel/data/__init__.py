"""Images and where they come from: the list of a data set's images, decoding to a crop, samples, extra images without
labels, skipped images, and batches on the device.
"""
