"""Section 7 of the method: pruning by diagonal connections, retraining, and what it saves."""
