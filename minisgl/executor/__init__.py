"""Where batches are computed."""
