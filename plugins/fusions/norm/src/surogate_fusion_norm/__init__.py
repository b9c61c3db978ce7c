"""Root mean square norms for surogate, with a backward pass of their own."""
