"""One file per fine-tuning method, each reading like its paper."""
