"""The pure steps between a question and its prompt, and what an answer cites."""
