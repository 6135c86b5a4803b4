"""The nerfstudio plugin: `ns-train cds` edits a trained radiance field, `ns-train cds-source` makes a good one."""
