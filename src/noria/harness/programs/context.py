"""Context editing: the model sees a history that is cut down as it grows. The trace keeps everything.

Three cuts, the mildest first. Chunks that the model has pruned are left out of the results that showed them. Of long
results that are some calls old only the size is left. And when the context is more than half full, the model is asked
to summarise; from then on its summary stands for all that came before it, as one of the tool `summarise` does. That
node of the trace has as parents all that it summarises, and its tokens are trained once, like any others
(self-summary, Composer 2, arXiv 2603.24477).
"""

from noria.harness.editing import since_summary, without_pruned
from noria.types import Message

RECENT_RESULTS = 4  # shown whole
SHORT_RESULT = 200  # characters; such results stay however old they are
FULL = 0.5  # of the context: then a summary is asked for
SUMMARISE = (
    "Your context is filling up. Summarise for yourself: the task, what you found out, what is left to do. "
    "Call no tool. Everything before your summary will be dropped."
)
GO_ON = "Go on from your summary."


class Harness:
    def view(self, state):
        messages = since_own_summary(since_summary(state.messages, state.notes))
        shown = edited(messages, set(state.notes.get("search", {}).get("pruned", ())))
        return (*shown, Message("user", SUMMARISE)) if self.full(state) else shown

    def tools(self, state):
        return () if self.full(state) else state.available

    def observe(self, state, action, result):
        return (Message("tool", result),)

    def answered(self, state, action):
        """A reply to the request for a summary is one; any other is the answer."""
        return (Message("user", GO_ON),) if asked(state) else ()

    def full(self, state):
        """Whether to ask for a summary now: not twice for the same messages."""
        summarised = state.messages[-1].content == GO_ON
        return state.context_used > FULL * state.context_limit and not summarised


def asked(state):
    """Whether the model's last view asked it for a summary, and it has not gone on from one since."""
    return bool(state.shown) and state.shown[-1].content == SUMMARISE and state.messages[-1].content != GO_ON


def since_own_summary(messages):
    """The task, the last summary with the word to go on, and what came after it."""
    first = next((i for i, message in enumerate(messages) if message.role == "assistant"), len(messages))
    marks = [i for i, message in enumerate(messages) if i > first and message == Message("user", GO_ON)]
    return messages if not marks else (*messages[:first], *messages[marks[-1] - 1 :])


def edited(messages, pruned):
    """The messages with their results cut down."""
    results = [i for i, message in enumerate(messages) if message.role == "tool"]
    recent = set(results[-RECENT_RESULTS:])
    return tuple(
        shorter(message, pruned, i in recent) if message.role == "tool" else message
        for i, message in enumerate(messages)
    )


def shorter(message, pruned, recent):
    text = without_pruned(message.content, pruned)
    if not recent and len(text) > SHORT_RESULT:
        text = f"({len(message.content)} characters of an earlier result are not shown any more)"
    return message if text == message.content else Message("tool", text)
