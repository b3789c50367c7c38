"""The structure learner: which of d standardized time series drives which, today and with lag."""
