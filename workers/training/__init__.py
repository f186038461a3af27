"""The built-in training program: data, models, training loop, evaluation."""
