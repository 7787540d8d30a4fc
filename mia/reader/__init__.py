"""Texts of any length in a fixed window (MemAgent, arXiv 2507.02259).

A text is read chunk by chunk, each time in a fresh conversation of one turn that writes a bounded memory anew; at the
end the question is answered from the memory alone. Tokens and time grow with the length of the text and no faster, and
memory does not grow at all.
"""
