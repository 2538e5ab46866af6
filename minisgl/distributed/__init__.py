"""Ranks that share each layer, and what they exchange."""
