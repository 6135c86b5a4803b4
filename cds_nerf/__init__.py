"""Text-guided editing of radiance fields and images with Contrastive Denoising Score."""

from cds_nerf.guidance import CDSGuidance, CDSGuidanceConfig, CDSOutput, LatentDiffusion, TextEmbedding

__all__ = ["CDSGuidance", "CDSGuidanceConfig", "CDSOutput", "LatentDiffusion", "TextEmbedding"]
