"""From maps to boxes and scores."""
