"""What was learned from earlier questions: recall before planning, remember and credit after the verdict."""
