"""The warm-up of the embedded model: a teacher's dialogues, a tokenizer, a small Llama, a trainer, a measurement."""
