"""Many images: what is done with each, where the files lie, and the Ray cluster that shares them out."""
