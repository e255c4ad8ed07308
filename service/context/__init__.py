"""What of a conversation Claude reads, and what that costs: the prompt cache and the size."""
