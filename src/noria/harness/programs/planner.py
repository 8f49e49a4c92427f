"""Planner and executor: the first reply is a plan, made without tools; then the plan is carried out, step by step.

The plan stays in the history, so that each prompt extends the last. A model that calls a tool instead of planning is
told that there is none yet, and goes on without a plan.
"""

from noria.types import Message

PLAN = "First write a plan of numbered steps for this. Call no tool yet."
EXECUTE = "Carry out your plan, one step after the other. When it is done, answer."


class Harness:
    def view(self, state):
        first = next((i for i, message in enumerate(state.messages) if message.role == "assistant"), None)
        task, rest = state.messages[:first], () if first is None else state.messages[first:]
        asked = Message(task[-1].role, f"{task[-1].content}\n\n{PLAN}")
        return (*task[:-1], asked, *rest)

    def tools(self, state):
        return state.available if state.turn else ()

    def observe(self, state, action, result):
        return (Message("tool", result),)

    def answered(self, state, action):
        """The first reply is the plan; any later one without a call is the answer."""
        return (Message("user", EXECUTE),) if state.turn == 1 else ()
