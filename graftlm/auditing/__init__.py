"""Compare tuned models with the model they were tuned from."""
