"""What a turn, a streamed event and a store full of sessions cost; see __main__.py."""
