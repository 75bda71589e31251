"""What the CPU backend holds beside the tensors of a call, at its most."""
