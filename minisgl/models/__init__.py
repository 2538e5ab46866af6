"""Model folders: where they are, what they say, and the architectures that can be computed."""
