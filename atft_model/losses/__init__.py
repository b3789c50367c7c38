"""Loss terms; every one is a mean over valid entries."""
