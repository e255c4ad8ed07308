"""Native endpoints, one noun a module."""
