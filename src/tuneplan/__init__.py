"""tuneplan: what it takes to fine-tune a language model."""

__version__ = "0.1.0"
