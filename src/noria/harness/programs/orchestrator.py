"""An orchestrator: the main agent makes helpers and hands out parts of the task that do not depend on each other.

For rollouts with sub-agents (`subagents=SubAgents(...)`); helpers themselves run a program of their own, often
`all_tools`.
"""

from noria.types import Message

RULES = (
    "You can make helpers with create_subagent and give them tasks with assign_task. Tasks that you assign in one "
    "reply are worked on at the same time; a helper knows only what you tell it. Answer when their results are enough."
)


class Harness:
    def view(self, state):
        first = state.messages[0]
        if first.role == "system":
            return (Message("system", f"{first.content}\n\n{RULES}"), *state.messages[1:])
        return (Message("system", RULES), *state.messages)

    def tools(self, state):
        return state.available

    def observe(self, state, action, result):
        return (Message("tool", result),)
