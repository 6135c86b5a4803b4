"""Metrics of an edit."""
