"""Non-ASCII characters: comments may contain them, code and strings may not."""

import warnings

from .errors import CompileError
from .tokens import comments, line_of


def beyond_ascii(text: str) -> str:
    """The text with non-ASCII characters of comments replaced by blanks, which is reported as a warning.

    Raises CompileError for such characters elsewhere.
    """
    if text.isascii():
        return text
    pieces, at, first = [], 0, None
    for start, end in comments(text):
        comment = text[start:end]
        if not comment.isascii():
            first = start if first is None else first
            comment = "".join(character if character.isascii() else " " for character in comment)
        pieces += [text[at:start], comment]
        at = end
    plain = "".join([*pieces, text[at:]])
    if not plain.isascii():
        position = next(at for at, character in enumerate(plain) if not character.isascii())
        reason = f"character {plain[position]!r} is not ASCII; only comments may hold it"
        raise CompileError(f"line {line_of(plain, position)}: error: {reason}")
    character = next(character for character in text[first:] if not character.isascii())
    line = line_of(text, text.index(character))
    message = f"line {line}: a comment holds {character!r}, which is not ASCII: MLX and some tools expect ASCII text"
    warnings.warn(message, UserWarning, stacklevel=3)
    return plain
