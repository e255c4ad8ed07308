"""As much of a session's history as its next request holds.

Every message is read, for a resent conversation is compared with all of them. Of those that will not be sent, because
they are in front of the view or a checkpoint stands for them, the images and documents of users are not: a session may
hold many times what Claude takes in one request, and its turns cost no more for that. A rewind may bring such messages
back into what is sent. Then the history is read once more, up to the cut.
"""

from dataclasses import replace

from service.context import compacted, word
from service.stored import stored
from storage.keys import SessionRef
from storage.turns import History, Turns


async def read(turns: Turns, ref: SessionRef, messages: int, context: str, epoch_start: int) -> History:
    """The history of a session as it stands.

    Args:
        turns: the store.
        ref: the session.
        messages: that it has.
        context: what its last turn left.
        epoch_start: see `epoch.Standing`.

    Raises:
        BatonError: as `stored`; request_too_large, if what would be sent is more than a replica reads.
    """
    begins = word.behind_cut(word.unpacked(context), messages, epoch_start).begins
    return await stored(turns.history(ref, messages, begins=begins))


async def up_to(turns: Turns, ref: SessionRef, history: History, kept: int, context: str, epoch_start: int) -> History:
    """The first messages of a history that was read, whole as far as they will be sent.

    Args:
        turns: the store.
        ref: the session.
        history: as `read` told it.
        kept: so many stay.
        context: what its last turn left.
        epoch_start: behind the cut.

    Raises:
        BatonError: as `read`, for what is kept.
    """
    begins = word.behind_cut(word.unpacked(context), kept, epoch_start).begins
    checkpoint = compacted.in_effect(history.checkpoint, kept)
    if history.whole_from <= max(begins, checkpoint.covers if checkpoint is not None else 0):
        return replace(history, elements=history.elements[:kept])
    return await stored(turns.history(ref, kept, begins=begins))
