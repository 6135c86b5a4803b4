"""How the bundled prior and classifier are made; `python -m cds_nerf.shapes.train_prior` runs it."""
