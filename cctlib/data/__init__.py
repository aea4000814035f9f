"""Section 1 of the method: data sets, their canonical order and splits, and images on disk."""
