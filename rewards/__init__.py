"""One file, one reward. Import as ``diffreward.rewards``."""

if __name__ != "diffreward.rewards":
    # Under two names one module would give two unequal classes.
    raise ImportError(f"write `import diffreward.rewards`, not `import {__name__}`")
