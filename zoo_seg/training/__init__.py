"""Retraining on one's own data: paired transforms, losses, and the fine-tuning loop."""
