"""How the nano base was made: run ``python -m mmtune.nano.build llm`` or ``vision``."""
