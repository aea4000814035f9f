"""Section 6 of the method: which labels a head owns, and whether it is an expert at them."""
