"""The panel: files to tensors, dates to splits and batches."""
