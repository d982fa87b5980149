"""What a fine-tuning method is: a way to collect experience, and a loss on it."""
