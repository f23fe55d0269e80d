"""Fine-tuning methods: one small file a part, and the rule that composes them."""
