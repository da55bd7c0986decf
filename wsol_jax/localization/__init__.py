"""From a trained network to localization maps."""
