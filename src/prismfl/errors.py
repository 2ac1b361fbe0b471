"""Typed errors: every one says what was got, what was expected, and what to do."""


class PrismError(Exception):
    """Base of all errors that a user or a caller can cause and mend.

    The command line turns any of these into one line and exit status 2.

    Args:
        got: what was there.
        expected: what should have been there.
        remedy: what to do about it.

    Examples:
        >>> raise SettingError("rounds = 0", "a whole number ≥ 1", "raise it")
        Traceback (most recent call last):
        prismfl.errors.SettingError: rounds = 0; expected a whole number ≥ 1; raise it
        >>> issubclass(SettingError, PrismError)
        True
    """

    def __init__(self, got: str, expected: str, remedy: str) -> None:
        super().__init__(got, expected, remedy)
        self.got, self.expected, self.remedy = got, expected, remedy

    def __str__(self) -> str:
        return f"{self.got}; expected {self.expected}; {self.remedy}"


class SettingError(PrismError):
    """A setting is unknown, of the wrong type, or outside its allowed range."""


class DataError(PrismError):
    """An image set is missing, damaged, empty or inconsistent."""


class MessageError(PrismError):
    """A frame between client and server is damaged, foreign or out of turn."""

    def __init__(self, got: str, expected: str, remedy: str = "the sender is left out of this round") -> None:
        super().__init__(got, expected, remedy)


class ModelFileError(PrismError):
    """A model or feature-network file is missing, damaged or foreign."""


class RunFolderError(PrismError):
    """A run folder cannot be created, read, written or resumed."""


class DependencyError(PrismError):
    """An optional library is missing or does not import."""


class ClientError(PrismError):
    """A client could not do its part of a round."""


class PrivacyError(PrismError):
    """A privacy guarantee cannot be given as asked, or a ledger does not read."""


class BudgetError(PrivacyError):
    """A release would take a source past what its budget allows in all."""


class PolicyError(PrismError):
    """A site does not answer what a server asks; it says why in words that hold nothing of the site's images."""
