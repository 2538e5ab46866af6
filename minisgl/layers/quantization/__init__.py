"""In which form weights are kept: one small file for each."""
