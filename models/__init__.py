"""Networks: by name, with batch norm as wanted, turned fully convolutional, and exported for others to load."""
