"""Networks that were saved by transformers, described in this library's words."""
