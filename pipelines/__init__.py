"""One file, one model family. Import as ``diffreward.pipelines``."""

if __name__ != "diffreward.pipelines":
    # Under two names one module would give two unequal classes.
    raise ImportError(f"write `import diffreward.pipelines`, not `import {__name__}`")
