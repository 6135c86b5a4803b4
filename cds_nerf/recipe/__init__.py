"""Edits from recipes in YAML: from a capture, or a run, to the edited video."""
