"""What rewards of sound do to waves before a network hears them: rates, windows, spectrograms."""
