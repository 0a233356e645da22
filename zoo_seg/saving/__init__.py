"""Networks in folders: saved, described in a card, rebuilt."""
