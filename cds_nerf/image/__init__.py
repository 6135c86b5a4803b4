"""Editing of images with the guidance: their latents are optimised; needs no nerfstudio."""
