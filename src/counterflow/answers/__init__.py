"""What a fitted model is asked, a kind of question per file; `CounterFlow` inherits all of it."""
