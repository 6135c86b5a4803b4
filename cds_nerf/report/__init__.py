"""`cds-nerf evaluate`: how good edits of scenes and images are, side by side."""
