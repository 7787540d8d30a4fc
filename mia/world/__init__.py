"""The offline research world: facts, where they are written down, questions about them, and search over them."""
