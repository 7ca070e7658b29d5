"""From story files to batches: corpus (stories), tokenizer, prepare (the cache), pipeline (batches)."""
