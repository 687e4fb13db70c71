"""Models: loading of weights and tokenizers, and the warm start of the built-in model."""
