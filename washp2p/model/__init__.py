"""A member's tensors: parameters, buffers, optimizer state. The only package that changes them."""
