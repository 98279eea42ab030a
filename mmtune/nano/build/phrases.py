"""How scenes are put into words in the text contexts the nano language model is trained on."""

CONTEXT_FORMS: tuple[tuple[str, ...], ...] = (
    ("there is {article} {size} {color} {shape} at the {row} {column}.",),
    ("I see {article} {size} {color} {shape} at the {row} {column}.",),
    ("at the {row} {column} there is {article} {size} {color} {shape}.",),
    ("the {shape} is {color}, it is {size} and at the {row} {column}.",),
    ("{article} {color} {shape}, {size}, {row} {column}.",),
    ("{shape}: {color}, {size}, {row} {column};",),
    ("{row} {column}: {size} {color} {shape};",),
    ("{color} {shape} {size} {row} {column},",),
    ("{shape} {color} {row} {column} {size}.",),
)
"""One form for each thing of a scene; ``article`` belongs to the word after it."""

FILLERS = ("this picture shows things.", "here is a picture.", "this is the picture.")
"""Sentences that may stand before the things and say nothing."""
