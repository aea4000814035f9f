"""Section 8 of the method: the rules by which claims are judged, and their verdicts."""
