"""One question, one answer: the model sees the task as it is and has no tools."""


class Harness:
    def view(self, state):
        return state.messages

    def tools(self, state):
        return ()

    def observe(self, state, action, result):
        return ()
