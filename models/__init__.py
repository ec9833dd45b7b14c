"""Networks: built by name, batch-norm settings, conversion to fully convolutional networks, and export."""
