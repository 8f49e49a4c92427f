"""Text as libraries want it."""


def valid(text: str) -> str:
    """Text without lone surrogates (from a file that is not UTF-8, or from JSON): each becomes replacement signs."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
