"""Models: where the weights and the tokenizer of a policy come from, and the warm start of the built-in model."""
