"""Masked autoencoders: models, masking, patches, positions, weights. Knows no data set, imports torch and timm only."""
