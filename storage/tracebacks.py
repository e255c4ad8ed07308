"""What errors hold.

A traceback holds frames, and these all that was worked on, down to the body of a request. As long as an error is only
passed up, that ends with its handling. Where one of the frames also holds the error, directly or through what it was
raised in or from, nothing but a full garbage collection ends it: so it is when an error is kept to be told later, and
with every error that Redis answers, for redis-py raises it from a variable of its own.
"""


def let_go(error: BaseException) -> None:
    """Forgets how an error came about; for one that is kept, or not passed on."""
    held = [error]
    while held:
        one = held.pop()
        held += [other for other in (one.__cause__, one.__context__) if other is not None]
        one.__traceback__ = one.__cause__ = one.__context__ = None
