"""Models: where a policy's weights and tokenizer come from, and the warm start of the one that is made from code."""
