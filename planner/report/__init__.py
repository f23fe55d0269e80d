"""What the user sees: terminal, JSON, explanations."""
