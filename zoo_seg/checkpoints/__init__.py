"""A file becomes tensors under our names: opened safely, converted, filled in."""
