"""Hold a tuned model against the model that it came from."""
