"""What a turn and a streamed event cost; see __main__.py."""
