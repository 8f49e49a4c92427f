"""A shell command in the workspace. Nothing lives from one command to the next but files."""

from noria.harness.tools.toolbox import CommandTool, Parameter

# Not deterministic: a command can read the clock and /dev/urandom. An environment whose commands don't may say so with
# dataclasses.replace(TERMINAL, deterministic=True), and `noria env check` holds it to that.
TERMINAL = CommandTool(
    name="terminal",
    description=(
        "terminal COMMAND: run COMMAND with sh in the workspace. Shows its output and, if it is not 0, its exit code. "
        "Each command starts anew in the workspace's folder; only files are kept. There is no network."
    ),
    parameters=(Parameter("command", "a command line for sh"),),
    argv=lambda arguments: ["sh", "-c", arguments["command"]],
    deterministic=False,
)
