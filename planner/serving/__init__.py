"""Inference: weights as deployed, KV cache, adapters, decode and prefill time."""
