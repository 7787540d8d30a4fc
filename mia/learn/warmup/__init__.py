"""The warm-up of the embedded model: a teacher's dialogues in training worlds, a tokenizer, a small Llama, a trainer."""
