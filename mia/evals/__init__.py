"""What we do with many questions: read them, answer them all, and say how well."""
