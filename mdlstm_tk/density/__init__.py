"""The kind `density`: the probability of a sample."""
