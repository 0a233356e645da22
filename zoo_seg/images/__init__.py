"""Images: read, resized exactly, normalised."""
