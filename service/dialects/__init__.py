"""Wire protocols offered to callers: pure translations, none imports another."""
