"""Making a checkpoint of four-bit weights. Text is not known here, only token ids."""
