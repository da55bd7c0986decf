"""3D detection from one annotated point an object (Gao et al., "Point-DETR3D", AAAI 2024)."""
