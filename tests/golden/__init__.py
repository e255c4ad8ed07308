"""What is on the wires on both sides of a replica, kept as text; see README.md."""
