"""FP8 linear layers: E4M3 forward, E5M2 backward, delayed scaling."""
