"""Generation: samplers of a policy's completions, the decoder that they run on, and engines in other processes."""
