"""Events come in: published as they are, or assembled from what the care API was told."""
