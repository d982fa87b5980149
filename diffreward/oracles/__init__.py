"""Networks that predict a measured property of a sequence, and how to train one from a table."""
