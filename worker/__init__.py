"""The training process: takes training runs off the queue. Never answers HTTP, and never imports backend/."""
