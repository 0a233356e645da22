"""Backbones: a file each, shared by all families."""
