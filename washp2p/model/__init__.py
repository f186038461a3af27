"""A member's tensors: parameters, buffers and optimizer state. No other package changes them."""
