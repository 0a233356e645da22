"""The web page of `zoo-seg demo`: a picture, a network, and what it sees. Needs the extra `demo`."""
