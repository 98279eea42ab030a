"""Runs side by side: under which budget they learnt, what they cost, what they score and where they disagree."""
