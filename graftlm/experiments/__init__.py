"""Arms over data: train, measure, compare."""
