"""Errors meant for the user: one line that says what is wrong and what to do."""


class UserError(Exception):
    """Something outside the program is wrong: a file, a setting, the machine.

    The message is a single line with the remedy. The command line prints it and exits with
    status 2; a caller from Python may catch it. Everything else that is raised is our mistake.
    """


def not_finite() -> UserError:
    """The error of a network or codec whose numbers overflow."""
    return UserError(
        "the model gives values that are not finite: get its file again, or compute in float32"
    )
