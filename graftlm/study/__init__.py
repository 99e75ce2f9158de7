"""Which ingredient of multi-token fine-tuning matters? The ladder, trained on the user's own model and data."""
