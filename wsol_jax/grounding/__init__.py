"""Weakly supervised grounding: which box of an image an expression refers to."""
