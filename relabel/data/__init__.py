"""Images and where they come from: the list of a data set's images, decoding to a crop, samples, extra images without
labels, images that are left out, and the batches that reach the device.
"""
