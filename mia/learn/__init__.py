"""Learning: what turns dialogues and rollouts into weights."""
