"""What is kept of the tensors that pass: small accumulators that merge exactly."""
