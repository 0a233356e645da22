"""The web page of `zoo-seg demo`: an image, a network, and what it sees. Needs the extra `demo`."""
