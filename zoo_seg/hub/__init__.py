"""A record becomes a verified file: cache, download, mirrors, Hugging Face."""
