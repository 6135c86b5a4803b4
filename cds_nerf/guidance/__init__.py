"""Contrastive Denoising Score guidance on a latent diffusion model; needs no nerfstudio."""

from cds_nerf.guidance.cds import CDSGuidance, CDSGuidanceConfig, CDSOutput
from cds_nerf.guidance.latent_diffusion import LatentDiffusion, TextEmbedding

__all__ = ["CDSGuidance", "CDSGuidanceConfig", "CDSOutput", "LatentDiffusion", "TextEmbedding"]
